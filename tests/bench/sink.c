/* A sink for benchmarks: takes mail as fast as one processor can, CHUNKING included, and drops it.
 *
 * usage: sink PORT [plain]
 *
 * It announces PIPELINING, 8BITMIME and CHUNKING ("plain": neither of the two), answers what came in
 * one read with one write, and knows no errors but a line that is too long.  To XCOUNT it says how many
 * contents it has taken.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LINE = 4096, READ = 65536, REPLIES = 65536 };

struct session {
    int socket;
    int in_data;      /* inside a content after DATA */
    int matched;      /* how much of CRLF "." CRLF the last octets are */
    long chunk;       /* octets of a BDAT chunk still to come */
    int line_length;
    char line[LINE];
};

static const char END[] = "\r\n.\r\n";
static char input[READ], replies[REPLIES];
static int replies_length;
static long taken;
static const char *hello;

static void say(const char *text) {
    int length = (int)strlen(text);
    if (replies_length + length < REPLIES) {
        memcpy(replies + replies_length, text, length);
        replies_length += length;
    }
}

static void take_content(void) {
    taken++;
    say("250 2.0.0 Ok\r\n");
}

/* Skip content; return how many octets of it there were. */
static int skip_content(struct session *s, const char *data, int length) {
    for (int i = 0; i < length; i++) {
        if (s->matched == 0) {
            const char *cr = memchr(data + i, '\r', length - i);
            if (!cr)
                return length;
            i = (int)(cr - data);
        }
        if (data[i] == END[s->matched])
            s->matched++;
        else
            s->matched = data[i] == '\r';
        if (s->matched == 5) {
            s->in_data = 0;
            take_content();
            return i + 1;
        }
    }
    return length;
}

/* Answer a command; return whether the session goes on. */
static int answer(struct session *s) {
    char *line = s->line;
    if (!strncasecmp(line, "EHLO", 4))
        say(hello);
    else if (!strncasecmp(line, "MAIL", 4))
        say("250 2.1.0 Ok\r\n");
    else if (!strncasecmp(line, "RCPT", 4))
        say("250 2.1.5 Ok\r\n");
    else if (!strncasecmp(line, "DATA", 4)) {
        say("354 End data with <CR><LF>.<CR><LF>\r\n");
        s->in_data = 1;
        s->matched = 2;
    } else if (!strncasecmp(line, "BDAT", 4)) {
        s->chunk = atol(line + 4);
        if (s->chunk == 0)
            take_content();
    } else if (!strncasecmp(line, "XCOUNT", 6)) {
        char text[32];
        snprintf(text, sizeof text, "250 %ld\r\n", taken);
        say(text);
    } else if (!strncasecmp(line, "QUIT", 4)) {
        say("221 2.0.0 Bye\r\n");
        return 0;
    } else
        say("250 2.0.0 Ok\r\n");
    return 1;
}

/* Take what was read; return whether the session goes on. */
static int take(struct session *s, const char *data, int length) {
    while (length > 0) {
        int used;
        if (s->chunk > 0) {
            used = s->chunk < length ? (int)s->chunk : length;
            s->chunk -= used;
            if (s->chunk == 0)
                take_content();
        } else if (s->in_data) {
            used = skip_content(s, data, length);
        } else {
            const char *end = memchr(data, '\n', length);
            used = end ? (int)(end - data) + 1 : length;
            if (s->line_length + used >= LINE)
                return 0;
            memcpy(s->line + s->line_length, data, used);
            s->line_length += used;
            if (end) {
                s->line[s->line_length] = 0;
                s->line_length = 0;
                if (!answer(s))
                    return 0;
            }
        }
        data += used;
        length -= used;
    }
    return 1;
}

int main(int argc, char **argv) {
    struct sockaddr_in at = {.sin_family = AF_INET};
    struct epoll_event event, events[64];
    int one = 1;
    if (argc < 2)
        return 64;
    hello = argc > 2 && !strcmp(argv[2], "plain")
                ? "250-sink.bench.test\r\n250 8BITMIME\r\n"
                : "250-sink.bench.test\r\n250-PIPELINING\r\n250-CHUNKING\r\n250 8BITMIME\r\n";
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    at.sin_port = htons((unsigned short)atoi(argv[1]));
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 1024)) {
        perror("sink");
        return 1;
    }
    int poll = epoll_create1(0);
    event.events = EPOLLIN;
    event.data.ptr = NULL;
    epoll_ctl(poll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int count = epoll_wait(poll, events, 64, -1);
        for (int i = 0; i < count; i++) {
            struct session *s = events[i].data.ptr;
            if (!s) {
                int socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
                if (socket < 0)
                    continue;
                setsockopt(socket, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
                s = calloc(1, sizeof *s);
                s->socket = socket;
                event.events = EPOLLIN;
                event.data.ptr = s;
                epoll_ctl(poll, EPOLL_CTL_ADD, socket, &event);
                if (write(socket, "220 sink.bench.test ESMTP\r\n", 27) < 0)
                    continue;
                continue;
            }
            int length = (int)read(s->socket, input, READ);
            if (length < 0 && (errno == EAGAIN || errno == EINTR))
                continue;
            replies_length = 0;
            int goes_on = length > 0 && take(s, input, length);
            if (replies_length && write(s->socket, replies, replies_length) < 0)
                goes_on = 0;
            if (!goes_on) {
                close(s->socket);
                free(s);
            }
        }
    }
}
