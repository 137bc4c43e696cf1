/* SPDX-License-Identifier: Apache-2.0 */

/*
 * Runs the program git. Never by a shell; with an environment of its own, so that neither the
 * host's nor the user's configuration, hooks, keys or questions on a terminal come in; and never
 * longer than it shows signs of life: it is told to report its progress, and is killed, with all
 * that it has started, when nothing more comes. It also ends when we do.
 */

#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <sys/pidfd.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "blobstore/base.h"
#include "solver/git-internal.h"

#define OUT_MAX (64u << 20) /* lists of refs are long */
#define NOTES_MAX (64u << 10)
#define KILL_AFTER_MS 2000 /* from asking it to end */
#define NOT_STARTED 127

static int no_memory(struct err *err)
{
	return err_set(err, -ENOMEM, "out of memory");
}

/* ------------------------------------------------------------------ arguments and environment */

struct texts {
	vec(char *) items;
};

static void texts_deinit_scoped(struct texts *texts)
{
	for (size_t i = 0; i < texts->items.n; i++)
		free(texts->items.items[i]);
	vec_free(&texts->items);
}

__attribute__((format(printf, 2, 3))) static int add(struct texts *texts, const char *fmt, ...)
{
	char **slot = vec_push(&texts->items);
	va_list ap;
	va_start(ap, fmt);
	int n = slot ? vasprintf(slot, fmt, ap) : -1;
	va_end(ap);
	if (slot && n < 0)
		*slot = NULL;
	return n < 0 ? -ENOMEM : 0;
}

static int add_inherited(struct texts *env)
{
	static const char *const names[] = {
		"PATH",	      "HTTP_PROXY",  "HTTPS_PROXY", "NO_PROXY",	 "ALL_PROXY",
		"http_proxy", "https_proxy", "no_proxy",    "all_proxy", "GIT_SSL_CAINFO",
	};
	int r = 0;
	for (size_t i = 0; i < countof(names) && r == 0; i++) {
		const char *value = getenv(names[i]);
		if (value)
			r = add(env, "%s=%s", names[i], value);
	}
	return r;
}

/* ssh: no questions, nobody's configuration, no keys but those of the agent. */
static int add_ssh(struct texts *env, const struct git *git)
{
	static const char ssh[] = "GIT_SSH_COMMAND=ssh -F /dev/null -o BatchMode=yes "
				  "-o IdentityFile=none";
	const char *agent = git->has_agent ? getenv("SSH_AUTH_SOCK") : NULL;
	int r = git->known_hosts < 0 ? add(env,
					   "%s -o StrictHostKeyChecking=no -o "
					   "UserKnownHostsFile=/dev/null",
					   ssh)
				     : add(env,
					   "%s -o StrictHostKeyChecking=yes -o "
					   "UserKnownHostsFile=/proc/%d/fd/%d",
					   ssh, getpid(), git->known_hosts);
	return r == 0 && agent ? add(env, "SSH_AUTH_SOCK=%s", agent) : r;
}

/* Settings go by the environment: arguments can be read by everybody. */
static int add_config(struct texts *env, const struct git *git)
{
	static const char *const settings[][2] = {
		{"core.hooksPath", "/dev/null"},
		{"core.fsmonitor", "false"},
		{"gc.auto", "0"},
		{"maintenance.auto", "false"},
		{"init.defaultBranch", "master"},
		{"advice.detachedHead", "false"},
	};
	size_t n = 0;
	int r = 0;
	for (; n < countof(settings) && r == 0; n++) {
		r = add(env, "GIT_CONFIG_KEY_%zu=%s", n, settings[n][0]);
		if (r == 0)
			r = add(env, "GIT_CONFIG_VALUE_%zu=%s", n, settings[n][1]);
	}
	for (size_t i = 0; i < git->n_config && r == 0; i++, n++) {
		r = add(env, "GIT_CONFIG_KEY_%zu=%s", n, git->config[i].key);
		if (r == 0)
			r = add(env, "GIT_CONFIG_VALUE_%zu=%s", n, git->config[i].value);
	}
	return r == 0 ? add(env, "GIT_CONFIG_COUNT=%zu", n) : r;
}

static int make_env(struct texts *env, const struct git *git)
{
	static const char *const fixed[] = {
		"LC_ALL=C",
		"GIT_TERMINAL_PROMPT=0",
		"GIT_CONFIG_NOSYSTEM=1",
		"GIT_CONFIG_GLOBAL=/dev/null",
		"GIT_ATTR_NOSYSTEM=1",
		"HOME=/nonexistent",
		"XDG_CONFIG_HOME=/nonexistent",
	};
	int r = add_inherited(env);
	for (size_t i = 0; i < countof(fixed) && r == 0; i++)
		r = add(env, "%s", fixed[i]);
	if (r == 0)
		r = add(env, "GIT_ALLOW_PROTOCOL=%s", git->protocols);
	if (r == 0 && git->index)
		r = add(env, "GIT_INDEX_FILE=%s", git->index);
	if (r == 0)
		r = add_ssh(env, git);
	if (r == 0)
		r = add_config(env, git);
	return r == 0 && !vec_push(&env->items) ? -ENOMEM : r;
}

static int make_args(struct texts *argv, const struct git *git, const char *const *args)
{
	int r = add(argv, "git");
	if (r == 0 && git->git_dir)
		r = add(argv, "--git-dir=%s", git->git_dir);
	if (r == 0 && git->work_tree)
		r = add(argv, "--work-tree=%s", git->work_tree);
	for (size_t i = 0; args[i] && r == 0; i++)
		r = add(argv, "%s", args[i]);
	return r == 0 && !vec_push(&argv->items) ? -ENOMEM : r;
}

/* ------------------------------------------------------------------ the process */

struct child {
	pid_t pid;
	int pidfd;
	int fds[2]; /* its standard output and error; -1 = ended */
	struct strbuf *out, *notes;
	bool is_over; /* more than OUT_MAX */
};

/* After fork, in a process whose other threads are gone: nothing that takes a lock. */
static void start(const char *dir, char *const *argv, char *const *env, pid_t parent, int out,
		  int notes)
{
	sigset_t none;
	int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
	setsid(); /* no terminal to ask on, and one group to kill */
	umask(022);
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	for (int i = 1; i < 32; i++)
		if (i != SIGKILL && i != SIGSTOP)
			signal(i, SIG_DFL);
	prctl(PR_SET_PDEATHSIG, SIGTERM);
	if (getppid() != parent || null < 0 || dup2(null, 0) < 0 || dup2(out, 1) < 0 ||
	    dup2(notes, 2) < 0 || chdir(dir) < 0)
		_exit(NOT_STARTED - 1);
	execvpe(argv[0], argv, env);
	_exit(NOT_STARTED);
}

static int spawn(struct child *c, const struct git *git, const char *const *args, struct err *err)
{
	scoped(texts_deinit) struct texts argv = {0}, env = {0};
	int out[2], notes[2];
	if (make_args(&argv, git, args) < 0 || make_env(&env, git) < 0)
		return no_memory(err);
	if (pipe2(out, O_CLOEXEC) < 0)
		return err_errno(err, "pipe");
	if (pipe2(notes, O_CLOEXEC) < 0) {
		int r = err_errno(err, "pipe");
		close_fd(out[0]);
		close_fd(out[1]);
		return r;
	}
	pid_t parent = getpid();
	c->pid = fork();
	if (c->pid == 0)
		start(git->work_tree ? git->work_tree : "/", argv.items.items, env.items.items,
		      parent, out[1], notes[1]);
	int r = c->pid < 0 ? err_errno(err, "fork") : 0;
	close_fd(out[1]);
	close_fd(notes[1]);
	c->fds[0] = out[0];
	c->fds[1] = notes[0];
	c->pidfd = -1;
	if (r == 0 && (c->pidfd = pidfd_open(c->pid, 0)) < 0) {
		r = err_errno(err, "pidfd_open");
		kill(-c->pid, SIGKILL);
		kill(c->pid, SIGKILL);
		waitpid(c->pid, NULL, 0);
	}
	for (int i = 0; i < 2; i++)
		if (r < 0)
			close_fd(c->fds[i]);
		else
			fcntl(c->fds[i], F_SETFL, O_NONBLOCK);
	return r;
}

/* Takes what there is of one stream; true when there was something. */
static bool drain(struct child *c, int i)
{
	struct strbuf *to = i == 0 ? c->out : c->notes;
	char bytes[16 << 10];
	ssize_t n;
	bool any = false;
	while (c->fds[i] >= 0 && (n = read(c->fds[i], bytes, sizeof(bytes))) != 0) {
		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0 && errno == EAGAIN)
			return any;
		if (n < 0)
			break;
		any = true;
		strbuf_add(to, bytes, (size_t)n);
		if (i == 0 && to->len > OUT_MAX) {
			c->is_over = true;
			strbuf_clear(to);
			return true;
		}
		if (i == 1 && !to->failed && to->len > NOTES_MAX) { /* what is new counts */
			size_t drop = to->len - NOTES_MAX / 2;
			memmove(to->data, to->data + drop, NOTES_MAX / 2 + 1);
			to->len -= drop;
		}
	}
	if (c->fds[i] >= 0)
		close_fd(c->fds[i]);
	c->fds[i] = -1;
	return any;
}

#define SLICE_MS 500 /* how often stop is looked at */

/* Until it has ended; false when it was killed since nothing more came, or nobody wants it. */
static bool watch(struct child *c, const struct git *git)
{
	uint64_t deadline_ms = git->deadline_ms;
	uint64_t last = now_ns(), asked = 0;
	for (;;) {
		struct pollfd fds[] = {
			{c->pidfd, POLLIN, 0}, {c->fds[0], POLLIN, 0}, {c->fds[1], POLLIN, 0}};
		uint64_t now = now_ns();
		uint64_t end =
			asked ? asked + KILL_AFTER_MS * NS_PER_MS : last + deadline_ms * NS_PER_MS;
		int wait = end > now ? (int)MIN((end - now) / NS_PER_MS + 1, (uint64_t)SLICE_MS) : 0;
		if (poll(fds, 3, wait) < 0 && errno != EINTR)
			return false;
		bool any = drain(c, 0);
		if (drain(c, 1) || any)
			last = now_ns();
		if (fds[0].revents)
			return !asked;
		if (c->is_over)
			return true;
		bool stops = !asked && git->stop && *git->stop;
		if (!stops && now_ns() < end)
			continue;
		if (!stops && !asked && now_ns() < last + deadline_ms * NS_PER_MS)
			continue;
		if (asked)
			return false;
		asked = now_ns();
		kill(-c->pid, SIGTERM);
	}
}

/* Why it failed, from how it ended. */
static int judge(const struct child *c, int status, bool in_time, const struct git *git,
		 const char *command, struct err *err)
{
	if (c->is_over)
		return err_set(err, -EFBIG, "git %s: its answer is too long", command);
	if (!in_time)
		return err_set(err, -ETIMEDOUT, "git %s: nothing came for %llu ms", command,
			       (unsigned long long)git->deadline_ms);
	if (c->out->failed || c->notes->failed)
		return no_memory(err);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 0)
		return 0;
	if (WIFEXITED(status) && WEXITSTATUS(status) == NOT_STARTED && c->notes->len == 0)
		return err_set(err, -ENODEV,
			       "git is not there: sources in git need it (Debian's package git)");
	scoped(free) char *reason = git_reason(c->notes->len ? c->notes->data : "");
	if (!reason)
		return no_memory(err);
	if (*reason)
		return err_set(err, git_errno(c->notes->data), "git %s: %.300s", command, reason);
	return WIFSIGNALED(status)
		       ? err_set(err, -EIO, "git %s: ended by signal %d", command, WTERMSIG(status))
		       : err_set(err, -EIO, "git %s: exit code %d", command, WEXITSTATUS(status));
}

int git_run(const struct git *git, const char *const *args, struct strbuf *out,
	    struct strbuf *notes, struct err *err)
{
	scoped(strbuf_free) struct strbuf own_out = {0}, own_notes = {0};
	struct child c = {.out = out ? out : &own_out, .notes = notes ? notes : &own_notes};
	int status = 0, r = spawn(&c, git, args, err);
	if (r < 0)
		return r;
	bool in_time = watch(&c, git);
	/* What it left behind, and itself when it did not end: its id is still taken. */
	kill(-c.pid, SIGKILL);
	if (!in_time || c.is_over)
		kill(c.pid, SIGKILL);
	while (waitpid(c.pid, &status, 0) < 0 && errno == EINTR)
		;
	drain(&c, 0);
	drain(&c, 1);
	for (int i = 0; i < 2; i++)
		if (c.fds[i] >= 0)
			close_fd(c.fds[i]);
	close_fd(c.pidfd);
	return judge(&c, status, in_time, git, args[0], err);
}
