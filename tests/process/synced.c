/*
 * Keeps what a power cut would leave of the folder $SYNCED_FOLDER, in $SYNCED_COPY: preloaded into a process,
 * it copies each file of that folder when a sync of it has ended, under the number of its inode, and when the
 * folder itself was synced, the list of its names. What was written and not synced, or renamed and not
 * synced, is not there.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static pthread_mutex_t one_at_a_time = PTHREAD_MUTEX_INITIALIZER;

static void fail(const char *what)
{
    perror(what);
    abort();
}

static void copy_file(const char *from, const char *to)
{
    static char buffer[1 << 16];
    char half[8200];
    ssize_t count;
    int source = open(from, O_RDONLY | O_CLOEXEC);
    if (source < 0)
        return; /* it was deleted while it was open */
    snprintf(half, sizeof half, "%s-half", to);
    int target = open(half, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (target < 0)
        fail(half);
    while ((count = read(source, buffer, sizeof buffer)) > 0)
        if (write(target, buffer, count) != count)
            fail(half);
    close(source);
    close(target);
    if (rename(half, to) < 0) /* a kill finds the old copy or the new one */
        fail(half);
}

static void list_names(const char *folder, const char *to)
{
    char half[8200];
    snprintf(half, sizeof half, "%s-half", to);
    FILE *list = fopen(half, "we");
    DIR *names = opendir(folder);
    if (list == NULL || names == NULL)
        fail(half);
    for (struct dirent *entry; (entry = readdir(names)) != NULL;)
        if (entry->d_type == DT_REG)
            fprintf(list, "%llu %s\n", (unsigned long long)entry->d_ino, entry->d_name);
    closedir(names);
    if (fclose(list) != 0 || rename(half, to) < 0)
        fail(half);
}

static void synced(int file)
{
    const char *folder = getenv("SYNCED_FOLDER"), *copy = getenv("SYNCED_COPY");
    char link[64], path[4096], to[8192];
    struct stat status;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (folder == NULL || copy == NULL || length < 0 || fstat(file, &status) < 0)
        return;
    path[length] = 0;
    pthread_mutex_lock(&one_at_a_time);
    if (strcmp(path, folder) == 0) {
        snprintf(to, sizeof to, "%s/names", copy);
        list_names(folder, to);
    } else if (strncmp(path, folder, strlen(folder)) == 0 && path[strlen(folder)] == '/') {
        snprintf(to, sizeof to, "%s/%llu", copy, (unsigned long long)status.st_ino);
        copy_file(path, to);
    }
    pthread_mutex_unlock(&one_at_a_time);
}

int fsync(int file)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int result = real(file);
    if (result == 0)
        synced(file);
    return result;
}

int fdatasync(int file)
{
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int result = real(file);
    if (result == 0)
        synced(file);
    return result;
}
