"""Tells twistd about foreman. Every twistd on the machine imports this file: it imports nothing of ours."""

from twisted.application.service import ServiceMaker

foreman = ServiceMaker("foreman", "foreman.tap", "A queue and a relay in front of one Ollama", "foreman")
