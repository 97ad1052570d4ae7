/* An echo server on libuv. It takes the listening socket on descriptor 0 and `tcp` or `unix` as its
 * argument. All connections are read into one buffer; what cannot be written at once is copied, and
 * the connection is not read from until it has been written. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <uv.h>

union listener {
    uv_stream_t stream;
    uv_tcp_t tcp;
    uv_pipe_t pipe;
};

struct rest {
    uv_write_t request;
    char bytes[];
};

static char buffer[64 * 1024];
static int tcp;

static void give_buffer(uv_handle_t *handle, size_t wanted, uv_buf_t *given) {
    (void)handle, (void)wanted;
    *given = uv_buf_init(buffer, sizeof buffer);
}

static void release(uv_handle_t *handle) { free(handle); }

static void end(uv_stream_t *stream) {
    if (!uv_is_closing((uv_handle_t *)stream))
        uv_close((uv_handle_t *)stream, release);
}

static void received(uv_stream_t *stream, ssize_t count, const uv_buf_t *from);

static void written(uv_write_t *request, int status) {
    uv_stream_t *stream = request->handle;
    free(request);
    if (status < 0)
        end(stream);
    else
        uv_read_start(stream, give_buffer, received);
}

static void received(uv_stream_t *stream, ssize_t count, const uv_buf_t *from) {
    if (count == 0)
        return;
    if (count < 0) {
        end(stream);
        return;
    }
    uv_buf_t all = uv_buf_init(from->base, count);
    ssize_t sent = uv_try_write(stream, &all, 1);
    if (sent == count)
        return;
    if (sent == UV_EAGAIN)
        sent = 0;
    if (sent < 0) {
        end(stream);
        return;
    }
    struct rest *rest = malloc(sizeof *rest + (count - sent));
    memcpy(rest->bytes, from->base + sent, count - sent);
    uv_buf_t left = uv_buf_init(rest->bytes, count - sent);
    uv_read_stop(stream);
    uv_write(&rest->request, stream, &left, 1, written);
}

static void connected(uv_stream_t *listener, int status) {
    if (status < 0)
        return;
    uv_stream_t *stream = malloc(tcp ? sizeof(uv_tcp_t) : sizeof(uv_pipe_t));
    if (tcp)
        uv_tcp_init(listener->loop, (uv_tcp_t *)stream);
    else
        uv_pipe_init(listener->loop, (uv_pipe_t *)stream, 0);
    if (uv_accept(listener, stream) != 0) {
        end(stream);
        return;
    }
    if (tcp)
        uv_tcp_nodelay((uv_tcp_t *)stream, 1);
    uv_read_start(stream, give_buffer, received);
}

int main(int count, char **words) {
    cpu_set_t first;
    CPU_ZERO(&first);
    CPU_SET(0, &first);
    sched_setaffinity(0, sizeof first, &first);
    signal(SIGPIPE, SIG_IGN);

    uv_loop_t *loop = uv_default_loop();
    union listener listener;
    int socket = dup(0);
    tcp = count > 1 && strcmp(words[1], "tcp") == 0;
    if (tcp) {
        uv_tcp_init(loop, &listener.tcp);
        uv_tcp_open(&listener.tcp, socket);
    } else {
        uv_pipe_init(loop, &listener.pipe, 0);
        uv_pipe_open(&listener.pipe, socket);
    }
    if (uv_listen(&listener.stream, 4096, connected) != 0)
        return 1;
    printf("%d\n", (int)getpid());
    fflush(stdout);
    return uv_run(loop, UV_RUN_DEFAULT);
}
