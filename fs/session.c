/* SPDX-License-Identifier: Apache-2.0 */

/*
 * session: one mount, from mount(2) to umount.
 *
 * One thread, the caller of session_run, reads /dev/fuse and answers there and then whatever is in
 * memory or on disk. It is one on purpose: a request that wakes a thread on another processor costs
 * several times what answering it costs, and since nothing here waits for the network, one thread
 * is rarely behind. Beside it run:
 *	parked		deadlines, and calls tried again when a tree says that it is time (parked.c)
 *	control		the control socket, if there is one (control.c)
 *	probe		makes the first getattr of the root, and ends (see below)
 * Threads are made in session_run, not before, so that a caller may fork after session_new.
 *
 * mount(2) is called here and not by libfuse, which tells what went wrong only to stderr; without
 * the privilege for it libfuse's way through fusermount3 is taken.
 *
 * A mount answers when its root's getattr has been answered through the kernel: the probe asks
 * with statx, and the reading thread, which saw the request pass, calls on_ready. Where the tree
 * says that it has no root, the session ends with its error. Where the tree is not ready by the
 * deadline, which is one for reads, the probe asks again: a layer may take longer to index.
 *
 * The end comes in one of two ways. Unmounted by somebody else: /dev/fuse says ENODEV. SIGTERM,
 * SIGINT or SIGHUP: the mount is detached and the device closed, so that whoever still uses the
 * mount gets ENOTCONN instead of waiting for ever.
 */

#include "fs/fs-internal.h"

#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/eventfd.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LINGER_NS (50 * NS_PER_MS / 1000)

#define DEADLINE_MS 60000
#define READ_AHEAD_KB (REPLY_MAX >> 10)
#define NO_FUSE                                                                                    \
	"no /dev/fuse here: load the fuse module or give the container --device /dev/fuse; "       \
	"`llbfs ls|cat|cp|tar` work without FUSE"

/* ------------------------------------------------------------------ what it says of itself */

void session_record(struct session *s, int code, const char *what, const char *text)
{
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	pthread_mutex_lock(&s->lock);
	struct session_error *e = &s->errors[s->n_errors++ % N_ERRORS];
	e->time_s = now.tv_sec;
	e->code = code;
	snprintf(e->what, sizeof(e->what), "%s", what);
	snprintf(e->text, sizeof(e->text), "%s", text);
	pthread_mutex_unlock(&s->lock);
	log_error("%s: %s", what, text);
}

void session_set_data(struct session *s, enum data_mode data, const char *reason)
{
	pthread_mutex_lock(&s->lock);
	snprintf(s->data_reason, sizeof(s->data_reason), "%s", reason);
	pthread_mutex_unlock(&s->lock);
	atomic_store(&s->data, data);
}

void session_status(struct session *s, struct session_status *out)
{
	*out = (struct session_status){
		.data = (enum data_mode)atomic_load(&s->data),
		.n_requests = atomic_load(&s->n_requests),
		.n_reads = atomic_load(&s->n_reads),
		.n_read_bytes = atomic_load(&s->n_read_bytes),
		.n_passthrough = atomic_load(&s->n_passthrough),
		.n_parked = parking_count(s->lot),
	};
	pthread_mutex_lock(&s->lock);
	memcpy(out->data_reason, s->data_reason, sizeof(out->data_reason));
	pthread_mutex_unlock(&s->lock);
}

size_t session_errors(struct session *s, struct session_error *out, size_t max)
{
	pthread_mutex_lock(&s->lock);
	size_t n = s->n_errors < N_ERRORS ? (size_t)s->n_errors : N_ERRORS;
	n = MIN(n, max);
	for (size_t i = 0; i < n; i++)
		out[i] = s->errors[(s->n_errors - 1 - i) % N_ERRORS];
	pthread_mutex_unlock(&s->lock);
	return n;
}

/* ------------------------------------------------------------------ signals */

/* A handler can reach nothing but globals: the eventfd of the process's session, or -1, and the
 * signal that came. There is one session at a time in a process. */
static atomic_int signal_fd = -1;
static volatile sig_atomic_t signal_came;

static const int stop_signals[N_STOP_SIGNALS] = {SIGTERM, SIGINT, SIGHUP};

/* From before the mount on, so that no signal leaves a mount behind that nobody serves. */
static void on_signal(int signo)
{
	const uint64_t one = 1;
	int saved = errno;
	int fd = atomic_load(&signal_fd);

	signal_came = signo;
	if (fd >= 0)
		(void)!write(fd, &one, sizeof(one));
	errno = saved;
}

/* What a caller had chosen to ignore (SIGHUP under nohup) stays ignored. */
static void catch_signals(struct session *s)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};

	signal_came = 0;
	atomic_store(&signal_fd, s->wake_fd);
	for (size_t i = 0; i < N_STOP_SIGNALS; i++) {
		sigaction(stop_signals[i], &action, &s->old_actions[i]);
		if (s->old_actions[i].sa_handler == SIG_IGN)
			sigaction(stop_signals[i], &s->old_actions[i], NULL);
	}
	s->catches_signals = true;
}

static void restore_signals(struct session *s)
{
	if (!s->catches_signals)
		return;
	for (size_t i = 0; i < N_STOP_SIGNALS; i++)
		sigaction(stop_signals[i], &s->old_actions[i], NULL);
	atomic_store(&signal_fd, -1);
}

/* ------------------------------------------------------------------ mounting */

static int device_error(struct err *err)
{
	int code = -errno;

	if (code == -ENOENT || code == -ENODEV || code == -ENXIO)
		return err_set(err, -ENODEV, NO_FUSE);
	if (code == -EPERM) /* the device exists but a container's rules forbid it */
		return err_set(err, -ENODEV,
			       "/dev/fuse may not be opened here: give the container "
			       "--device /dev/fuse; `llbfs ls|cat|cp|tar` work "
			       "without FUSE");
	if (code == -EACCES) /* fusermount3 would not help: libfuse opens it before */
		return err_set(err, -ENODEV,
			       "/dev/fuse may be opened by root only here: let root "
			       "`chmod 666 /dev/fuse`; `llbfs ls|cat|cp|tar` work "
			       "without FUSE");
	return err_set(err, code, "cannot open /dev/fuse: %s", strerror(-code));
}

/* A mount by mount(2): a descriptor of /dev/fuse that serves it. -EPERM: not privileged. */
static int mount_direct(const struct session *s, struct err *err)
{
	const struct mount_options *o = &s->options;
	unsigned long flags = (o->upper ? 0 : MS_RDONLY) | MS_NOATIME | (o->suid ? 0 : MS_NOSUID) |
			      (o->dev ? 0 : MS_NODEV);
	char data[160];

	scoped(close_fd) int fd = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (fd < 0)
		return device_error(err);
	snprintf(data, sizeof(data),
		 "fd=%d,rootmode=40000,user_id=%u,group_id=%u,default_permissions%s", fd, getuid(),
		 getgid(), o->allow_other ? ",allow_other" : "");
	if (mount(s->fsname, s->mountpoint, "fuse.llbfs", flags, data) < 0) {
		if (errno == ENODEV)
			return err_set(err, -ENODEV, NO_FUSE);
		return err_errno(err, "cannot mount at %s", s->mountpoint);
	}
	int taken = fd;
	fd = -1;
	return taken;
}

/* Options as libfuse and fusermount3 take them: commas and backslashes of the name escaped. */
static char *fusermount_options(const struct session *s)
{
	struct strbuf out = {0};

	strbuf_puts(&out, s->options.upper ? "-orw" : "-oro");
	strbuf_puts(&out, ",noatime,default_permissions,subtype=llbfs,fsname=");
	for (const char *p = s->fsname; *p; p++) {
		if (*p == ',' || *p == '\\')
			strbuf_putc(&out, '\\');
		strbuf_putc(&out, *p);
	}
	if (s->options.allow_other)
		strbuf_puts(&out, ",allow_other");
	return strbuf_finish(&out);
}

static struct fuse_session *new_fuse(struct session *s)
{
	scoped(free) char *options = fusermount_options(s);
	char *argv[] = {(char *)"llbfs", options, NULL};
	struct fuse_args args = FUSE_ARGS_INIT(2, argv);
	struct fuse_lowlevel_ops ops = ops_table;

	if (!options)
		return NULL;
	if (s->options.upper)
		change_add_ops(&ops);
	struct fuse_session *fuse = fuse_session_new(&args, &ops, sizeof(ops), s);
	fuse_opt_free_args(&args);
	return fuse;
}

static ssize_t device_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	struct session *s = userdata;

	init_complete(&s->init, iov, count);
	return writev(fd, iov, count);
}

static ssize_t device_read(int fd, void *buf, size_t len, void *userdata)
{
	struct session *s = userdata;
	ssize_t n = read(fd, buf, len);

	if (n > 0)
		init_see(&s->init, buf, (size_t)n);
	return n;
}

/* From which mount(2) or fusermount3 has made a mount on. */
static int adopt_device(struct session *s, int fd, struct err *err)
{
	static const struct fuse_custom_io io = {.writev = device_writev, .read = device_read};

	/* Without it a read would block where a request was taken back after poll had seen it. */
	int flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0)
		return err_errno(err, "/dev/fuse");
	int r = fuse_session_custom_io(s->fuse, &io, fd);
	if (r < 0)
		return err_set(err, r, "libfuse: %s", strerror(-r));
	s->fd = fd;
	return 0;
}

static int mount_session(struct session *s, struct err *err)
{
	s->fuse = new_fuse(s);
	if (!s->fuse)
		return err_set(err, -ENOMEM, "cannot set up libfuse");
	int fd = mount_direct(s, err);
	if (fd == -EPERM) {
		if (s->options.suid || s->options.dev)
			return err_set(err, -EPERM, "the options suid and dev need root");
		if (fuse_session_mount(s->fuse, s->mountpoint) < 0)
			return err_set(
				err, -EPERM,
				"cannot mount at %s: neither mount(2) nor fusermount3 (Debian's "
				"package fuse3) may; the folder must be writable by you",
				s->mountpoint);
		s->is_mounted = true;
		s->is_fusermount = true;
		fd = fuse_session_fd(s->fuse);
	} else if (fd < 0) {
		return fd;
	}
	s->is_mounted = true;
	int r = adopt_device(s, fd, err);
	if (r < 0 && !s->is_fusermount)
		close_fd(fd);
	return r;
}

int session_new(struct session **out, struct tree *tree, const struct mount_options *options,
		struct err *err)
{
	scoped(session_free) struct session *s = calloc(1, sizeof(*s));
	if (!s)
		return err_set(err, -ENOMEM, "no memory");
	s->fd = s->wake_fd = -1;
	s->options = *options;
	pthread_mutex_init(&s->lock, NULL);
	passthrough_init(&s->passthrough);
	s->init.wants_passthrough = !tree->is_live && !options->upper &&
				    (options->data == DATA_PASSTHROUGH ||
				     (options->data == DATA_AUTO && options->wants_passthrough));
	s->init.is_writable = options->upper != NULL;
	s->tree = tree_ref(tree);
	s->fsname = strdup(options->fsname ? options->fsname : "llbfs");
	s->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (!s->fsname || s->wake_fd < 0)
		return err_set(err, -ENOMEM, "no memory");
	int r = parking_new(&s->lot, s, options->deadline_ms ? options->deadline_ms : DEADLINE_MS);
	if (r < 0)
		return err_set(err, r, "no memory");
	if (options->upper) {
		r = syncer_new(&s->syncer, s);
		if (r < 0)
			return err_set(err, r, "no memory");
	}
	if (tree->is_live)
		session_set_data(s, DATA_OPEN, "some of the tree may change at any time");
	else if (options->upper && options->data != DATA_OPEN)
		session_set_data(s, DATA_NOOPEN, "what can be written goes by request");
	else if (options->data == DATA_NOOPEN || options->data == DATA_OPEN)
		session_set_data(s, options->data, "asked for");
	else
		session_set_data(s, DATA_AUTO, "nothing was opened yet");

	r = mounts_resolve(options->mountpoint, &s->mountpoint, err);
	if (r == 0) {
		catch_signals(s);
		r = mount_session(s, err);
	}
	if (r < 0)
		return r;
	*out = take(s);
	return 0;
}

int session_control(struct session *s, const char *path, const struct control_row *rows, size_t n,
		    void *arg, struct err *err)
{
	return control_new(&s->control, path, rows, n, arg, err);
}

/* ------------------------------------------------------------------ the probe */

/* Finds the mount's device numbers, which name it below /sys; 0:0 where /proc cannot tell. */
static void find_device(const struct session *s, unsigned *major, unsigned *minor)
{
	struct mount_entry *entries;
	size_t n;

	*major = *minor = 0;
	if (mounts_list(&entries, &n, NULL) < 0)
		return;
	for (size_t i = 0; i < n; i++) {
		if (strcmp(entries[i].mountpoint, s->mountpoint) != 0)
			continue;
		*major = entries[i].major; /* the last is on top */
		*minor = entries[i].minor;
	}
	mounts_free(entries, n);
}

/* The kernel starts with 128 KiB and lets INIT only lower it; raising is root's, and a bonus. */
static void raise_read_ahead(unsigned major, unsigned minor)
{
	char path[64], text[16];

	snprintf(path, sizeof(path), "/sys/class/bdi/%u:%u/read_ahead_kb", major, minor);
	int n = snprintf(text, sizeof(text), "%u", READ_AHEAD_KB);
	scoped(close_fd) int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd >= 0)
		(void)!write(fd, text, (size_t)n);
}

static int root_error(struct session *s, struct err *err)
{
	pthread_mutex_lock(&s->lock);
	int r = s->root_result;
	if (r < 0 && err)
		*err = s->root_err;
	pthread_mutex_unlock(&s->lock);
	return r;
}

static void *probe_main(void *arg)
{
	struct session *s = arg;
	unsigned major, minor;
	struct statx stx;

	pthread_setname_np(pthread_self(), "probe");
	/* Any other error than EIO is that of a session that ends. */
	while (statx(AT_FDCWD, s->mountpoint, AT_SYMLINK_NOFOLLOW | AT_STATX_FORCE_SYNC,
		     STATX_BASIC_STATS, &stx) < 0)
		if (errno != EIO || root_error(s, NULL) < 0 || atomic_load(&s->is_root_answered))
			return NULL;
	find_device(s, &major, &minor);
	if (major || minor)
		raise_read_ahead(major, minor);
	return NULL;
}

static void wake(struct session *s)
{
	const uint64_t one = 1;

	(void)!write(s->wake_fd, &one, sizeof(one));
}

void session_root_answered(struct session *s)
{
	if (!atomic_exchange(&s->is_root_answered, true))
		wake(s);
}

bool session_root_failed(struct session *s, int code, const struct err *err)
{
	if (atomic_load(&s->is_root_answered))
		return false;
	pthread_mutex_lock(&s->lock);
	s->root_result = code;
	s->root_err = *err;
	pthread_mutex_unlock(&s->lock);
	wake(s);
	return true;
}

/* ------------------------------------------------------------------ the loop */

/* Reads and answers one request, if there is one. Returns 1 to go on, 0 at the end, or an error. */
static int serve_one(struct session *s, struct fuse_buf *buf, bool *served, struct err *err)
{
	int n = fuse_session_receive_buf(s->fuse, buf);

	*served = n > 0;
	if (n > 0)
		fuse_session_process_buf(s->fuse, buf);
	if (fuse_session_exited(s->fuse)) { /* ENODEV: unmounted, or cut off through /sys */
		s->is_gone = true;
		return 0;
	}
	if (n < 0 && n != -EINTR && n != -EAGAIN)
		return err_set(err, n, "cannot read requests from the kernel: %s", strerror(-n));
	return 1;
}

/* Serves what is there, and stays a moment for the next request: where an idle processor must be
 * woken for each one, as in a virtual machine, that costs more than answering it. */
static int serve_some(struct session *s, struct fuse_buf *buf, struct err *err)
{
	uint64_t last = now_ns();
	bool served;
	int r;

	do {
		r = serve_one(s, buf, &served, err);
		if (served)
			last = now_ns();
		else
			sched_yield();
	} while (r > 0 && s->is_ready && !signal_came && now_ns() - last < LINGER_NS);
	return r;
}

static void look_up_from_work(struct session *s)
{
	uint64_t n;

	(void)!read(s->wake_fd, &n, sizeof(n));
	if (s->is_ready || !atomic_load(&s->is_root_answered))
		return;
	s->is_ready = true;
	if (s->options.on_ready)
		s->options.on_ready(s->options.arg);
}

static int loop(struct session *s, struct err *err)
{
	struct fuse_buf buf = {0};
	struct pollfd fds[] = {{.fd = s->fd, .events = POLLIN},
			       {.fd = s->wake_fd, .events = POLLIN}};
	int r = 1;

	while (r > 0) {
		if (poll(fds, countof(fds), -1) < 0 && errno != EINTR) {
			r = err_errno(err, "poll");
			break;
		}
		if (fds[1].revents)
			look_up_from_work(s);
		if (!s->is_ready && root_error(s, err) < 0) {
			r = root_error(s, NULL);
			break;
		}
		if (signal_came)
			break;
		if (fds[0].revents)
			r = serve_some(s, &buf, err);
	}
	free(buf.mem);
	return MIN(r, 0);
}

int session_run(struct session *s, struct err *err)
{
	pthread_t probe;

	int r = parking_start(s->lot, err);
	if (r == 0 && s->control)
		r = control_start(s->control, err);
	if (r < 0)
		return r;
	r = pthread_create(&probe, NULL, probe_main, s);
	if (r) {
		r = err_set(err, -r, "cannot start a thread: %s", strerror(r));
	} else {
		s->has_probe = true;
		s->probe = probe;
		r = loop(s, err);
	}
	if (signal_came)
		log_info("signal %d: unmounting %s", (int)signal_came, s->mountpoint);
	return r;
}

/* ------------------------------------------------------------------ the end */

/* True while the mount, or a part of it that somebody still uses, is there. */
static bool is_still_mounted(const struct session *s)
{
	struct pollfd pfd = {.fd = s->fd};

	if (!s->is_mounted || s->is_gone)
		return false;
	return pfd.fd < 0 || poll(&pfd, 1, 0) <= 0 || !(pfd.revents & POLLERR);
}

/* Not blindly: somebody may have unmounted us in the meantime and mounted something else there. */
static void unmount(struct session *s)
{
	unsigned major, minor;
	struct err err;

	find_device(s, &major, &minor);
	if (!major && !minor)
		return;
	if (mounts_unmount(s->mountpoint, true, &err) < 0)
		log_warn("%s stays mounted: %s", s->mountpoint, err_text(&err, err.code));
}

void session_free(struct session *s)
{
	if (!s)
		return;
	control_free(s->control);
	parked_put(s->spare);
	syncer_free(s->syncer);
	parking_close(s->lot); /* the last replies; the device is still open */
	if (is_still_mounted(s))
		unmount(s);
	if (s->fuse)
		fuse_session_destroy(s->fuse); /* closes the device, so that nobody waits for us */
	if (s->has_probe)
		pthread_join(s->probe, NULL);
	restore_signals(s);
	passthrough_deinit(&s->passthrough);
	tree_unref(s->tree);
	close_fd(s->wake_fd);
	pthread_mutex_destroy(&s->lock);
	free(s->mountpoint);
	free(s->fsname);
	free(s);
}
