/* SPDX-License-Identifier: Apache-2.0 */
#pragma once

/* Runs tests/registry.py for tests in C, over a layout with one blob and one manifest. */

#include "tests/test.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <jansson.h>
#include <netinet/in.h>
#include <signal.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>

#define BLOB_SIZE 300000

static uint8_t blob_bytes[BLOB_SIZE];
static struct digest blob_digest, manifest_digest;
static const char manifest_text[] = "{\"schemaVersion\":2,\"mediaType\":"
				    "\"application/vnd.oci.image.manifest.v1+json\"}";

struct test_registry {
	char *dir;
	pid_t pid;
	int in;	       /* closing it ends the registry */
	char host[64]; /* "127.0.0.1:PORT" */
};

static inline void put_file(const char *dir, const char *name, const void *bytes, size_t n)
{
	scoped(free) char *path = str_printf("%s/%s", dir, name);
	FILE *f = fopen(path, "w");

	assert_non_null(f);
	assert_int_equal(fwrite(bytes, 1, n, f), n);
	fclose(f);
}

static inline void make_layout(const char *dir)
{
	scoped(free) char *blobs = str_printf("%s/blobs/sha256", dir);
	char hex[DIGEST_HEX_MAX], text[1024];

	assert_int_equal(make_dirs(blobs, 0755), 0);
	test_fill(blob_bytes, BLOB_SIZE, 7);
	digest_bytes(&blob_digest, blob_bytes, BLOB_SIZE);
	digest_bytes(&manifest_digest, manifest_text, strlen(manifest_text));
	put_file(blobs, digest_hex(&blob_digest, hex), blob_bytes, BLOB_SIZE);
	put_file(blobs, digest_hex(&manifest_digest, hex), manifest_text, strlen(manifest_text));
	snprintf(text, sizeof(text),
		 "{\"schemaVersion\":2,\"manifests\":[{\"mediaType\":"
		 "\"application/vnd.oci.image.manifest.v1+json\",\"digest\":\"sha256:%s\","
		 "\"size\":%zu}]}",
		 hex, strlen(manifest_text));
	put_file(dir, "index.json", text, strlen(text));
}

/* @options: further arguments, NULL-terminated. */
static inline void test_registry_start(struct test_registry *r, char *const *options)
{
	int in[2], out[2];
	posix_spawn_file_actions_t files;
	char line[128] = "";
	const char *tests = getenv("TEST_SOURCE");

	if (!tests)
		fail_msg("TEST_SOURCE must name the folder of the tests");
	r->dir = test_dir();
	make_layout(r->dir);
	scoped(free) char *program = str_printf("%s/registry.py", tests);
	scoped(free) char *layout = str_printf("team/app=%s", r->dir);
	char *argv[16] = {(char *)"/usr/bin/python3", program, (char *)"--watch-stdin"};
	int n = 3;
	while (options && *options)
		argv[n++] = *options++;
	argv[n] = layout;
	assert_int_equal(pipe2(in, O_CLOEXEC) | pipe2(out, O_CLOEXEC), 0);
	posix_spawn_file_actions_init(&files);
	posix_spawn_file_actions_adddup2(&files, in[0], 0);
	posix_spawn_file_actions_adddup2(&files, out[1], 1);
	assert_int_equal(posix_spawn(&r->pid, argv[0], &files, NULL, argv, environ), 0);
	posix_spawn_file_actions_destroy(&files);
	close(in[0]);
	close(out[1]);
	r->in = in[1];
	for (size_t at = 0; at + 1 < sizeof(line) && !strchr(line, '\n'); at++)
		if (read(out[0], line + at, 1) != 1)
			fail_msg("the test registry does not start");
	close(out[0]);
	line[strcspn(line, "\n")] = '\0';
	snprintf(r->host, sizeof(r->host), "%s", strstr(line, "//") + 2);
}

static inline void test_registry_stop(struct test_registry *r)
{
	if (!r->dir) /* it was never started */
		return;
	close(r->in);
	waitpid(r->pid, NULL, 0);
	test_dir_remove(r->dir);
}

/* POSTs @json to the control endpoint; the state after it. */
static inline json_t *test_registry_control(struct test_registry *r, const char *json)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
	scoped(strbuf_free) struct strbuf answer = {0};
	scoped(free) char *request = str_printf("POST /_control HTTP/1.1\r\nConnection: close\r\n"
						"Content-Length: %zu\r\n\r\n%s",
						strlen(json), json);
	char buf[65536];
	ssize_t n;
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	to.sin_port = htons((uint16_t)atoi(strchr(r->host, ':') + 1));
	assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof(to)), 0);
	assert_int_equal(write_full(fd, request, strlen(request)), 0);
	while ((n = read(fd, buf, sizeof(buf))) > 0)
		strbuf_add(&answer, buf, (size_t)n);
	close(fd);
	const char *body = strstr(answer.data, "\r\n\r\n");
	assert_non_null(body);
	json_t *state = json_loads(body, 0, NULL);
	if (!state)
		fail_msg("%.200s: %.200s", json, answer.data);
	return state;
}

static inline void tell(struct test_registry *r, const char *json)
{
	json_decref(test_registry_control(r, json));
}

/* How many requests the log has of a kind ("registry", "cdn", "token") with a status (0 = any)
 * and Authorization (NULL = any). */
static inline int count_requests(struct test_registry *r, const char *where, int status,
				 const char *auth)
{
	json_t *state = test_registry_control(r, "{}");
	size_t i;
	json_t *entry;
	int n = 0;

	json_array_foreach(json_object_get(state, "log"), i, entry)
	{
		n += !strcmp(json_string_value(json_object_get(entry, "where")), where) &&
		     (!status || status == json_integer_value(json_object_get(entry, "status"))) &&
		     (!auth || !strcmp(json_string_value(json_object_get(entry, "auth")), auth));
	}
	json_decref(state);
	return n;
}
