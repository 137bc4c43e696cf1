/* SPDX-License-Identifier: Apache-2.0 */

/* Writes to a registry that misbehaves, and to layouts: all of it, or one clear error and nothing. */

#include "tests/blobstore/registry.h"

#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/stat.h>

static struct test_registry server;
static struct net *net;
static char *other; /* a second repository's layout */
static struct err last;

/* ------------------------------------------------------------------ what is sent */

struct memory {
	uint8_t *bytes;
	struct desc desc;
	struct blob_source source;
	uint64_t n_read; /* in all */
	size_t most;	 /* at once; 0 = as asked */
	int fail_with;	 /* after the first half */
};

static int memory_read(void *arg, uint64_t off, void *dst, size_t len, size_t *got, struct err *err)
{
	struct memory *m = arg;

	if (m->fail_with && off >= m->source.size / 2)
		return err_set(err, m->fail_with, "the source broke");
	*got = MIN(len, (size_t)(m->source.size - off));
	if (m->most)
		*got = MIN(*got, m->most);
	memcpy(dst, m->bytes + off, *got);
	m->n_read += *got;
	return 0;
}

static uint64_t next_seed = 100;

static void memory_init(struct memory *m, size_t n)
{
	*m = (struct memory){.bytes = malloc(n + 1)};
	test_fill(m->bytes, n, next_seed++);
	digest_bytes(&m->desc.digest, m->bytes, n);
	m->desc.size = n;
	m->desc.media_type = (char *)"application/vnd.oci.image.layer.v1.tar";
	m->source = (struct blob_source){.size = n, .read = memory_read, .arg = m};
}

/* The layout at @dir has exactly these bytes. */
static bool is_in(const char *dir, const struct memory *m)
{
	char hex[DIGEST_HEX_MAX];
	scoped(strbuf_free) struct strbuf have = {0};
	scoped(free) char *path =
		str_printf("%s/blobs/sha256/%s", dir, digest_hex(&m->desc.digest, hex));

	return read_file(AT_FDCWD, path, 512 << 20, &have) == 0 && have.len == m->desc.size &&
	       (!have.len || memcmp(have.data, m->bytes, have.len) == 0);
}

static int push_to(const char *host, struct memory *m)
{
	scoped(target_unref) struct target *t = NULL;

	last = (struct err){0};
	assert_int_equal(target_registry(&t, net, host, "team/app", &last), 0);
	int r = target_put_blob(t, &m->desc, &m->source, &last);
	assert_int_equal(r < 0, last.code < 0);
	return r;
}

static int push(struct memory *m)
{
	return push_to(server.host, m);
}

/* A new blob of @n bytes gets there, whatever stands in the way. */
static void gets_there(size_t n)
{
	struct memory m;

	memory_init(&m, n);
	int r = push(&m);
	if (r < 0)
		fail_msg("%s", last.text);
	assert_int_equal(r, 0);
	assert_true(is_in(server.dir, &m));
	assert_int_equal(push(&m), 1);
	free(m.bytes);
}

static void is_refused(size_t n, int code, const char *words)
{
	struct memory m;

	memory_init(&m, n);
	assert_int_equal(push(&m), code);
	if (words && !strstr(last.text, words))
		fail_msg("\"%s\" is not in \"%s\"", words, last.text);
	free(m.bytes);
}

static int64_t log_sum(const char *method, const char *key, int *n)
{
	json_t *state = test_registry_control(&server, "{}"), *e;
	int64_t sum = 0;
	size_t i;

	*n = 0;
	json_array_foreach(json_object_get(state, "log"), i, e)
	{
		if (strcmp(json_string_value(json_object_get(e, "method")), method) != 0)
			continue;
		++*n;
		sum += json_integer_value(json_object_get(e, key));
	}
	json_decref(state);
	return sum;
}

static int n_of(const char *method)
{
	int n;

	log_sum(method, "received", &n);
	return n;
}

/* ------------------------------------------------------------------ uploads */

static void sends_once_and_not_again(void **state)
{
	struct memory m;
	int n;

	memory_init(&m, 3 << 20);
	assert_int_equal(push(&m), 0);
	assert_true(is_in(server.dir, &m));
	assert_int_equal(m.n_read, 3 << 20);
	assert_int_equal(log_sum("PUT", "received", &n), 3 << 20);
	assert_int_equal(n, 1);
	assert_int_equal(push(&m), 1);
	assert_int_equal(m.n_read, 3 << 20);
	assert_int_equal(n_of("PUT"), 1);
	free(m.bytes);
	gets_there(0);
	gets_there(1);
	gets_there(65536);
}

static void a_slow_source_is_no_stall(void **state)
{
	struct memory m;

	memory_init(&m, 300000);
	m.most = 777;
	assert_int_equal(push(&m), 0);
	assert_true(is_in(server.dir, &m));
	free(m.bytes);
}

static void goes_by_every_location(void **state)
{
	tell(&server, "{\"set\":{\"location\":\"relative\"}}");
	gets_there(100000);
	tell(&server, "{\"set\":{\"location\":\"query\"}}");
	gets_there(100000);
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"cut_body_after\":300000}}");
	gets_there(900000);
	assert_true(n_of("PATCH") > 0);
}

static void refuses_wrong_locations(void **state)
{
	tell(&server, "{\"fault\":{\"method\":\"POST\",\"location\":\"ftp://x/y\"}}");
	is_refused(10, -EBADMSG, "Location");
	tell(&server, "{\"fault\":{\"method\":\"POST\",\"location\":\"http://192.0.2.1/y\"}}");
	is_refused(10, -EBADMSG, "Location");
}

static void resumes_a_cut_upload(void **state)
{
	int n;

	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"cut_body_after\":2000000}}");
	gets_there(5 << 20);
	assert_int_equal(log_sum("PATCH", "received", &n), (5 << 20) - 2000000);
	tell(&server, "{\"clear\":true}");
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"cut_body_after\":1000000}}");
	tell(&server, "{\"fault\":{\"method\":\"PATCH\",\"cut_body_after\":1000000,\"count\":2}}");
	gets_there(5 << 20);
}

static void begins_anew_what_cannot_be_resumed(void **state)
{
	tell(&server, "{\"set\":{\"resume\":false},"
		      "\"fault\":{\"method\":\"PUT\",\"cut_body_after\":1000000}}");
	gets_there(3 << 20);
	tell(&server, "{\"set\":{\"resume\":true},"
		      "\"fault\":{\"method\":\"PUT\",\"forget\":true}}");
	gets_there(3 << 20);
	tell(&server, "{\"set\":{\"patch\":false},"
		      "\"fault\":{\"method\":\"PUT\",\"cut_body_after\":1000000}}");
	gets_there(3 << 20);
}

static void believes_a_blob_whose_answer_was_lost(void **state)
{
	struct memory m;

	memory_init(&m, 1 << 20);
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"lose_answer\":true}}");
	assert_int_equal(push(&m), 0);
	assert_true(is_in(server.dir, &m));
	assert_int_equal(m.n_read, 1 << 20);
	free(m.bytes);
}

static void sends_chunks_where_bodies_are_bounded(void **state)
{
	int n;

	tell(&server, "{\"set\":{\"body_max\":9000000,\"chunk_min\":1000}}");
	tell(&server, "{\"fault\":{\"method\":\"PATCH\",\"status\":503,\"skip\":1}}");
	gets_there(20 << 20);
	log_sum("PATCH", "received", &n);
	assert_true(n >= 4);
}

static void waits_and_tries_again(void **state)
{
	tell(&server, "{\"fault\":{\"method\":\"POST\",\"status\":429,"
		      "\"headers\":{\"Retry-After\":\"1\"}}}");
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"status\":500,\"count\":2}}");
	tell(&server, "{\"fault\":{\"method\":\"HEAD\",\"hang_up\":true}}");
	gets_there(300000);
	tell(&server, "{\"fault\":{\"method\":\"POST\",\"status\":429,\"count\":-1,"
		      "\"headers\":{\"Retry-After\":\"3600\"}}}");
	is_refused(10, -ETIMEDOUT, "3600 s");
}

static void gives_up(void **state)
{
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"status\":500,\"count\":-1}}");
	is_refused(1000, -ETIMEDOUT, "HTTP 500");
	tell(&server, "{\"clear\":true}");
	tell(&server, "{\"fault\":{\"method\":\"POST\",\"status\":400,\"count\":-1}}");
	is_refused(1000, -EBADMSG, "HTTP 400");
	tell(&server, "{\"clear\":true}");
	tell(&server, "{\"set\":{\"resume\":false},\"fault\":{\"match\":\"uploads/\","
		      "\"stall_body_after\":10000,\"count\":-1}}");
	is_refused(30 << 20, -ETIMEDOUT, "for 3.0 s");
}

static void follows_redirects_of_uploads(void **state)
{
	tell(&server, "{\"set\":{\"upload_redirect\":true}}");
	gets_there(2 << 20);
	assert_true(count_requests(&server, "cdn", 201, "none") > 0);
}

static void tokens_for_pushing_that_end_on_the_way(void **state)
{
	tell(&server, "{\"set\":{\"auth\":\"token\"}}");
	gets_there(100000);
	tell(&server, "{\"set\":{\"upload_uses\":1}}");
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"cut_body_after\":500000}}");
	gets_there(3 << 20);
	assert_true(count_requests(&server, "registry", 401, NULL) >= 2);
	tell(&server, "{\"set\":{\"anonymous\":false,\"upload_uses\":0}}");
	tell(&server, "{\"revoke\":true}");
	is_refused(10, -EACCES, server.host);
}

static void sends_nothing_wrong(void **state)
{
	struct memory m;

	memory_init(&m, 3 << 20);
	m.bytes[5] ^= 1;
	assert_int_equal(push(&m), -EBADMSG);
	assert_non_null(strstr(last.text, "does not match"));
	m.bytes[5] ^= 1;
	m.desc.size++;
	assert_int_equal(push(&m), -EBADMSG);
	m.desc.size--;
	m.fail_with = -EIO;
	assert_int_equal(push(&m), -EIO);
	assert_string_equal(last.text, "the source broke");
	assert_false(is_in(server.dir, &m));
	free(m.bytes);
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"digest\":\"sha256:00\"}}");
	is_refused(1000, -EBADMSG, "something else");
}

/* ------------------------------------------------------------------ mounts and streams */

static void mounts_across_repositories(void **state)
{
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *blobs = str_printf("%s/blobs/sha256", other);
	struct memory m;
	const char *const settings[] = {"{\"set\":{\"mount\":true}}",
					"{\"set\":{\"auth\":\"token\"}}"};

	for (size_t i = 0; i < countof(settings); i++) {
		tell(&server, settings[i]);
		memory_init(&m, 100000);
		put_file(blobs, digest_hex(&m.desc.digest, hex), m.bytes, 100000);
		m.source.from_repository = "other";
		assert_int_equal(push(&m), 1);
		assert_int_equal(m.n_read, 0);
		assert_true(is_in(server.dir, &m));
		free(m.bytes);
	}
	/* who knows no mounts, or refuses them, gets the bytes */
	tell(&server, "{\"set\":{\"mount\":false}}");
	memory_init(&m, 100000);
	m.source.from_repository = "other";
	assert_int_equal(push(&m), 0);
	assert_int_equal(m.n_read, 100000);
	free(m.bytes);
	tell(&server, "{\"fault\":{\"match\":\"mount=\",\"status\":405}}");
	memory_init(&m, 100000);
	m.source.from_repository = "other";
	assert_int_equal(push(&m), 0);
	free(m.bytes);
}

/* From one repository of the server to another one, without mounts. */
static int stream_across(size_t n, struct memory *m)
{
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *blobs = str_printf("%s/blobs/sha256", other);
	scoped(registry_unref) struct registry *from = NULL;
	scoped(blob_source_close) struct blob_source source = {0};
	scoped(target_unref) struct target *t = NULL;
	struct err err = {0};

	memory_init(m, n);
	put_file(blobs, digest_hex(&m->desc.digest, hex), m->bytes, n);
	assert_int_equal(registry_new(&from, net, server.host, "other", &err), 0);
	assert_int_equal(blob_source_open(&source, NULL, registry_remote(from), &m->desc, &err), 0);
	assert_int_equal(target_registry(&t, net, server.host, "team/app", &err), 0);
	int r = target_put_blob(t, &m->desc, &source, &err);
	if (r < 0)
		last = err;
	return r;
}

static void streams_each_byte_once(void **state)
{
	struct memory m;
	int n;

	assert_int_equal(stream_across(20 << 20, &m), 0);
	assert_true(is_in(server.dir, &m));
	free(m.bytes);
	assert_int_equal(log_sum("GET", "bytes", &n), 20 << 20);
	assert_int_equal(log_sum("PUT", "received", &n), 20 << 20);
	/* both ends break */
	tell(&server, "{\"fault\":{\"method\":\"GET\",\"cut_after\":3000000}}");
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"cut_body_after\":5000000}}");
	assert_int_equal(stream_across(10 << 20, &m), 0);
	assert_true(is_in(server.dir, &m));
	free(m.bytes);
	/* the source is not what it says */
	tell(&server, "{\"fault\":{\"method\":\"GET\",\"match\":\"/other/\",\"wrong_bytes\":1}}");
	assert_int_equal(stream_across(5 << 20, &m), -EBADMSG);
	assert_false(is_in(server.dir, &m));
	free(m.bytes);
}

static void a_source_waits_for_a_slow_taker(void **state)
{
	char hex[DIGEST_HEX_MAX];
	scoped(free) char *blobs = str_printf("%s/blobs/sha256", other);
	scoped(registry_unref) struct registry *from = NULL;
	scoped(blob_source_close) struct blob_source source = {0};
	struct memory m;
	struct err err = {0};
	uint8_t buf[4096];
	size_t got;
	int n;

	memory_init(&m, 30 << 20);
	put_file(blobs, digest_hex(&m.desc.digest, hex), m.bytes, 30 << 20);
	assert_int_equal(registry_new(&from, net, server.host, "other", &err), 0);
	assert_int_equal(blob_source_open(&source, NULL, registry_remote(from), &m.desc, &err), 0);
	assert_int_equal(source.read(source.arg, 0, buf, sizeof(buf), &got, &err), 0);
	/* longer than patience, which is the taker's own affair */
	poll(NULL, 0, 4000);
	struct net_stats stats;
	net_stats(net, &stats);
	assert_true(stats.bytes < 3 << 20);
	for (uint64_t at = got; at < m.desc.size; at += got) {
		if (source.read(source.arg, at, buf, sizeof(buf), &got, &err) < 0)
			fail_msg("%s", err.text);
		assert_memory_equal(buf, m.bytes + at, got);
	}
	log_sum("GET", "bytes", &n);
	assert_int_equal(n, 1);
	/* back to some place before */
	assert_int_equal(source.read(source.arg, 1000, buf, 100, &got, &err), 0);
	assert_memory_equal(buf, m.bytes + 1000, got);
	free(m.bytes);
}

struct pushing {
	pthread_t thread;
	struct memory m;
	int result;
};

static void *push_thread(void *arg)
{
	struct pushing *p = arg;
	scoped(target_unref) struct target *t = NULL;
	struct err err = {0};

	p->result = target_registry(&t, net, server.host, "team/app", &err);
	if (p->result == 0)
		p->result = target_put_blob(t, &p->m.desc, &p->m.source, &err);
	return NULL;
}

static void many_at_once(void **state)
{
	struct pushing all[12];

	tell(&server, "{\"set\":{\"auth\":\"token\"}}");
	for (size_t i = 0; i < countof(all); i++) {
		memory_init(&all[i].m, 2 << 20);
		pthread_create(&all[i].thread, NULL, push_thread, &all[i]);
	}
	for (size_t i = 0; i < countof(all); i++) {
		pthread_join(all[i].thread, NULL);
		assert_int_equal(all[i].result, 0);
		assert_true(is_in(server.dir, &all[i].m));
		free(all[i].m.bytes);
	}
}

static void manifests(void **state)
{
	static const char text[] = "{\"schemaVersion\":2,\"mediaType\":"
				   "\"application/vnd.oci.image.manifest.v1+json\",\"n\":1}";
	scoped(target_unref) struct target *t = NULL;
	scoped(registry_unref) struct registry *r = NULL;
	scoped(strbuf_free) struct strbuf body = {0};
	scoped(free) char *type = NULL;
	struct desc desc = {.size = strlen(text),
			    .media_type = (char *)"application/vnd.oci.image.manifest.v1+json"};
	struct err err = {0};

	digest_bytes(&desc.digest, text, strlen(text));
	assert_int_equal(target_registry(&t, net, server.host, "team/app", &err), 0);
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"status\":503}}");
	assert_int_equal(target_put_manifest(t, &desc, text, "new", &err), 0);
	assert_int_equal(registry_new(&r, net, server.host, "team/app", &err), 0);
	assert_int_equal(registry_get_manifest(r, "new", &body, &type, &err), 0);
	assert_string_equal(body.data, text);
	assert_int_equal(target_put_manifest(t, &desc, text, NULL, &err), 0);
	assert_int_equal(target_put_manifest(t, &desc, text, "a/../b", &err), -EINVAL);
	tell(&server, "{\"fault\":{\"method\":\"PUT\",\"digest\":\"sha256:11\"}}");
	assert_int_equal(target_put_manifest(t, &desc, text, "new", &err), -EBADMSG);
	desc.digest.bytes[0] ^= 1;
	assert_int_equal(target_put_manifest(t, &desc, text, "new", &err), -EBADMSG);
}

/* ------------------------------------------------------------------ layouts */

#define WRITERS 16

static void put_tag(const char *dir, int i)
{
	scoped(target_unref) struct target *t = NULL;
	scoped(free) char *text = str_printf("{\"n\":%d}", i), *tag = str_printf("t%d", i % 100);
	struct desc desc = {.size = strlen(text), .media_type = (char *)"application/x"};
	struct err err = {0};

	digest_bytes(&desc.digest, text, strlen(text));
	if (target_layout(&t, dir, &err) < 0 ||
	    target_put_manifest(t, &desc, text, tag, &err) < 0) {
		fprintf(stderr, "%s\n", err.text);
		_exit(1);
	}
}

static json_t *index_of(const char *dir)
{
	scoped(free) char *path = str_printf("%s/index.json", dir);
	json_t *root = json_load_file(path, 0, NULL);

	assert_non_null(root);
	return root;
}

static void layouts_lose_no_entry(void **state)
{
	char *dir = test_dir();
	pid_t pids[WRITERS];
	int status;

	for (int i = 0; i < WRITERS; i++) {
		pids[i] = fork();
		if (pids[i] == 0) {
			put_tag(dir, i);
			_exit(0);
		}
	}
	for (int i = 0; i < WRITERS; i++) {
		waitpid(pids[i], &status, 0);
		assert_int_equal(status, 0);
	}
	json_t *root = index_of(dir);
	assert_int_equal(json_array_size(json_object_get(root, "manifests")), WRITERS);
	json_decref(root);
	put_tag(dir, 103); /* t3 again */
	root = index_of(dir);
	json_t *list = json_object_get(root, "manifests");
	assert_int_equal(json_array_size(list), WRITERS);
	const char *tag = json_string_value(
		json_object_get(json_object_get(json_array_get(list, WRITERS - 1), "annotations"),
				"org.opencontainers.image.ref.name"));
	assert_string_equal(tag, "t3");
	json_decref(root);
	test_dir_remove(dir);
}

static void layouts_take_only_what_is_right(void **state)
{
	char *dir = test_dir();
	scoped(target_unref) struct target *t = NULL;
	struct memory m;
	struct err err = {0};

	assert_int_equal(target_layout(&t, dir, &err), 0);
	memory_init(&m, 1 << 20);
	m.bytes[0] ^= 1;
	assert_int_equal(target_put_blob(t, &m.desc, &m.source, &err), -EBADMSG);
	m.bytes[0] ^= 1;
	assert_false(is_in(dir, &m));
	assert_int_equal(target_put_blob(t, &m.desc, &m.source, &err), 0);
	assert_int_equal(target_put_blob(t, &m.desc, &m.source, &err), 1);
	assert_true(is_in(dir, &m));
	put_file(dir, "index.json", "[1]", 3);
	char text[] = "{}";
	struct desc desc = {.size = 2, .media_type = (char *)"application/x"};
	digest_bytes(&desc.digest, text, 2);
	assert_int_equal(target_put_manifest(t, &desc, text, "x", &err), -EBADMSG);
	free(m.bytes);
	test_dir_remove(dir);
}

/* ------------------------------------------------------------------ around them */

static int reset(void **state)
{
	const struct net_options options = {.deadline_ms = 3000};
	struct err err = {0};

	tell(&server,
	     "{\"clear\":true,\"revoke\":true,\"set\":{\"auth\":\"none\",\"anonymous\":true,"
	     "\"mount\":true,\"patch\":true,\"resume\":true,\"location\":\"absolute\","
	     "\"chunk_min\":0,\"body_max\":0,\"upload_uses\":0,\"upload_redirect\":false}}");
	return net_new(&net, &options, &err);
}

static int end(void **state)
{
	net_free(net);
	return 0;
}

static int start_server(void **state)
{
	other = test_dir();
	make_layout(other);
	scoped(free) char *more = str_printf("other=%s", other);
	char *options[] = {more, NULL};

	test_registry_start(&server, options);
	setenv("DOCKER_CONFIG", server.dir, 1);
	setenv("XDG_RUNTIME_DIR", server.dir, 1);
	setenv("XDG_CONFIG_HOME", server.dir, 1);
	return 0;
}

static int stop_server(void **state)
{
	test_registry_stop(&server);
	test_dir_remove(other);
	return 0;
}

#define on_server(f) cmocka_unit_test_setup_teardown(f, reset, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(layouts_lose_no_entry),
		cmocka_unit_test(layouts_take_only_what_is_right),
		on_server(sends_once_and_not_again),
		on_server(a_slow_source_is_no_stall),
		on_server(goes_by_every_location),
		on_server(refuses_wrong_locations),
		on_server(resumes_a_cut_upload),
		on_server(begins_anew_what_cannot_be_resumed),
		on_server(believes_a_blob_whose_answer_was_lost),
		on_server(sends_chunks_where_bodies_are_bounded),
		on_server(waits_and_tries_again),
		on_server(gives_up),
		on_server(follows_redirects_of_uploads),
		on_server(tokens_for_pushing_that_end_on_the_way),
		on_server(sends_nothing_wrong),
		on_server(mounts_across_repositories),
		on_server(streams_each_byte_once),
		on_server(a_source_waits_for_a_slow_taker),
		on_server(many_at_once),
		on_server(manifests),
	};

	return cmocka_run_group_tests(tests, start_server, stop_server);
}
