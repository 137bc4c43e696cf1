/* SPDX-License-Identifier: Apache-2.0 */

/* Reads from a registry that misbehaves: the right bytes, or one clear error within the deadline. */

#include "tests/blobstore/registry.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>

static struct test_registry server;
static struct net *net;

struct reading {
	struct transfer t;
	pthread_mutex_t lock;
	pthread_cond_t cond;
	uint8_t *bytes;
	size_t n;
	int n_done, result, stop_with;
	struct err err;
	uint64_t took_ms;
};

static int reading_data(struct transfer *t, const void *bytes, size_t n)
{
	struct reading *rd = containerof(t, struct reading, t);

	if (rd->stop_with)
		return rd->stop_with;
	if (rd->n + n > t->len)
		return -EOVERFLOW;
	memcpy(rd->bytes + rd->n, bytes, n);
	rd->n += n;
	return 0;
}

static void reading_done(struct transfer *t, int result, const struct err *err)
{
	struct reading *rd = containerof(t, struct reading, t);

	pthread_mutex_lock(&rd->lock);
	rd->n_done++;
	rd->result = result;
	if (err)
		rd->err = *err;
	pthread_cond_broadcast(&rd->cond);
	pthread_mutex_unlock(&rd->lock);
}

static void reading_init(struct reading *rd, uint64_t off, uint64_t len, uint64_t deadline_ms)
{
	*rd = (struct reading){.t = {.digest = blob_digest,
				     .blob_size = BLOB_SIZE,
				     .off = off,
				     .len = len,
				     .data = reading_data,
				     .done = reading_done}};
	if (deadline_ms)
		rd->t.deadline_ns = now_ns() + deadline_ms * NS_PER_MS;
	pthread_mutex_init(&rd->lock, NULL);
	pthread_cond_init(&rd->cond, NULL);
	rd->bytes = malloc(len);
}

static int reading_wait(struct reading *rd)
{
	pthread_mutex_lock(&rd->lock);
	while (!rd->n_done)
		pthread_cond_wait(&rd->cond, &rd->lock);
	pthread_mutex_unlock(&rd->lock);
	assert_int_equal(rd->n_done, 1);
	if (rd->result == 0)
		assert_int_equal(rd->n, rd->t.len);
	/* What came before a failure is right, too. */
	assert_memory_equal(rd->bytes, blob_bytes + rd->t.off, rd->n);
	free(rd->bytes);
	return rd->result;
}

static struct registry *open_registry(void)
{
	struct registry *r = NULL;
	struct err err = {0};

	if (registry_new(&r, net, server.host, "team/app", &err) < 0)
		fail_msg("%s", err.text);
	return r;
}

static void begin(struct reading *rd, struct registry *r)
{
	struct remote *remote = registry_remote(r);

	remote->ops->start(remote, &rd->t);
}

/* One read through a registry of its own. The text of the error stays in last. */
static struct err last;
static uint64_t last_ms;
static int read_in(uint64_t off, uint64_t len, uint64_t deadline_ms)
{
	scoped(registry_unref) struct registry *r = open_registry();
	struct reading rd;
	uint64_t from = now_ns();

	reading_init(&rd, off, len, deadline_ms);
	begin(&rd, r);
	int result = reading_wait(&rd);
	last = rd.err;
	last_ms = (now_ns() - from) / NS_PER_MS;
	return result;
}

static void assert_says(const char *words)
{
	if (!strstr(last.text, words))
		fail_msg("\"%s\" does not say \"%s\"", last.text, words);
}

static void set_config(const char *json)
{
	put_file(server.dir, "config.json", json, strlen(json));
}

static int reset(void **state)
{
	struct net_options options = {.deadline_ms = 10000};
	struct err err = {0};

	tell(&server,
	     "{\"clear\":true,\"revoke\":true,\"set\":{\"auth\":\"none\",\"redirect\":false,"
	     "\"anonymous\":true,\"token_ttl\":300,\"redirect_uses\":0,\"redirect_ttl\":300,"
	     "\"identity_token\":null,\"challenge\":null,\"token_says\":null,"
	     "\"token_field\":\"token\",\"redirect_host\":\"127.0.0.1\"}}");
	set_config("{}");
	assert_int_equal(net_new(&net, &options, &err), 0);
	return 0;
}

static int end(void **state)
{
	net_free(net);
	return 0;
}

/* ------------------------------------------------------------------ sound answers */

static void reads_ranges_and_the_whole(void **state)
{
	struct net_stats stats;

	assert_int_equal(read_in(0, BLOB_SIZE, 0), 0);
	assert_int_equal(read_in(1000, 1, 0), 0);
	assert_int_equal(read_in(BLOB_SIZE - 5, 5, 0), 0);
	net_stats(net, &stats);
	assert_int_equal(stats.requests, 3);
	assert_int_equal(stats.bytes, BLOB_SIZE + 6);
	assert_int_equal(count_requests(&server, "registry", 206, NULL), 2);
}

static void refuses_ranges_outside_of_the_blob(void **state)
{
	assert_int_equal(read_in(BLOB_SIZE, 1, 0), -EINVAL);
	assert_int_equal(read_in(UINT64_MAX, 2, 0), -EINVAL);
	assert_int_equal(read_in(5, 0, 0), -EINVAL);
}

static void keeps_connections(void **state)
{
	scoped(registry_unref) struct registry *r = open_registry();
	struct reading rd;

	for (int i = 0; i < 5; i++) {
		reading_init(&rd, (uint64_t)i * 100, 50, 0);
		begin(&rd, r);
		assert_int_equal(reading_wait(&rd), 0);
	}
	json_t *doc = test_registry_control(&server, "{}");
	json_t *log = json_object_get(doc, "log");
	json_int_t first = json_integer_value(json_object_get(json_array_get(log, 0), "conn"));
	json_int_t fifth = json_integer_value(json_object_get(json_array_get(log, 4), "conn"));
	assert_int_equal(first, fifth);
	json_decref(doc);
}

static void reads_many_at_once(void **state)
{
	enum { N = 200 };
	static struct reading all[N];
	scoped(registry_unref) struct registry *r = open_registry();

	for (int i = 0; i < N; i++) {
		reading_init(&all[i], (uint64_t)i * 1000, 1000, 0);
		all[i].t.is_stream = i % 3 == 0;
		begin(&all[i], r);
	}
	for (int i = 0; i < N; i++)
		assert_int_equal(reading_wait(&all[i]), 0);
}

static void gets_manifests_by_tag_and_digest(void **state)
{
	scoped(registry_unref) struct registry *r = open_registry();
	scoped(strbuf_free) struct strbuf body = {0};
	scoped(free) char *type = NULL;
	scoped(free) char *type2 = NULL;
	char text[DIGEST_TEXT_MAX];

	assert_int_equal(registry_get_manifest(r, "latest", &body, &type, &last), 0);
	assert_string_equal(body.data, manifest_text);
	assert_string_equal(type, "application/vnd.oci.image.manifest.v1+json");
	strbuf_clear(&body);
	digest_text(&manifest_digest, text);
	assert_int_equal(registry_get_manifest(r, text, &body, &type2, &last), 0);
	assert_string_equal(body.data, manifest_text);
}

static void refuses_a_manifest_that_does_not_match(void **state)
{
	scoped(registry_unref) struct registry *r = open_registry();
	scoped(strbuf_free) struct strbuf body = {0};
	char *type = NULL;
	char text[DIGEST_TEXT_MAX];

	tell(&server, "{\"fault\":{\"wrong_bytes\":1}}");
	digest_text(&manifest_digest, text);
	assert_int_equal(registry_get_manifest(r, text, &body, &type, &last), -EBADMSG);
	assert_says("does not match");
	assert_int_equal(registry_get_manifest(r, "none", &body, &type, &last), -ENOENT);
	assert_says("team/app: manifests/none: HTTP 404");
	assert_int_equal(registry_get_manifest(r, "../x", &body, &type, &last), -EINVAL);
	assert_int_equal(body.len, 0);
}

static void refuses_an_endless_manifest(void **state)
{
	static const char *const headers[] = {"", "\"Connection\":\"close\",\"Content-Length\":[]"};
	scoped(registry_unref) struct registry *r = open_registry();
	scoped(strbuf_free) struct strbuf body = {0};
	scoped(free) char *big = malloc(MANIFEST_MAX + 2);
	char *type = NULL;

	memset(big, 'x', MANIFEST_MAX + 1);
	big[MANIFEST_MAX + 1] = '\0';
	/* Once the length is told, once it has to be counted. */
	for (size_t i = 0; i < countof(headers); i++) {
		scoped(free) char *json = str_printf("{\"clear\":true,\"fault\":{\"count\":-1,"
						     "\"status\":200,\"headers\":{%s},"
						     "\"body\":\"%s\"}}",
						     headers[i], big);
		tell(&server, json);
		assert_int_equal(registry_get_manifest(r, "latest", &body, &type, &last), -EBADMSG);
		assert_says("larger than");
		assert_int_equal(body.len, 0);
	}
}

static void gets_small_blobs_verified(void **state)
{
	scoped(registry_unref) struct registry *r = open_registry();
	scoped(strbuf_free) struct strbuf body = {0};
	struct desc desc = {.digest = blob_digest, .size = BLOB_SIZE};

	assert_int_equal(registry_get_blob(r, &desc, &body, &last), 0);
	assert_int_equal(body.len, BLOB_SIZE);
	assert_memory_equal(body.data, blob_bytes, BLOB_SIZE);
	tell(&server, "{\"fault\":{\"wrong_bytes\":1}}");
	assert_int_equal(registry_get_blob(r, &desc, &body, &last), -EBADMSG);
	assert_says("does not match its digest");
	desc.size++;
	assert_int_equal(registry_get_blob(r, &desc, &body, &last), -EBADMSG);
	assert_says("300000 bytes where the manifest has 300001");
}

/* ------------------------------------------------------------------ odd answers */

static void takes_its_bytes_where_ranges_are_ignored(void **state)
{
	tell(&server, "{\"fault\":{\"ignore_range\":true,\"count\":-1}}");
	assert_int_equal(read_in(0, 10, 0), 0);
	assert_int_equal(read_in(150000, 70000, 0), 0);
	assert_int_equal(read_in(BLOB_SIZE - 1, 1, 0), 0);
}

static void continues_short_and_trims_wide_answers(void **state)
{
	tell(&server, "{\"fault\":{\"short_range\":1000,\"count\":5}}");
	assert_int_equal(read_in(5000, 4500, 0), 0);
	assert_int_equal(count_requests(&server, "registry", 206, NULL), 5);
	tell(&server, "{\"fault\":{\"wide_range\":7777,\"count\":3}}");
	assert_int_equal(read_in(100000, 4500, 0), 0);
	assert_int_equal(read_in(10, 10, 0), 0);
	assert_int_equal(read_in(BLOB_SIZE - 9, 9, 0), 0);
}

static void refuses_wrong_ranges(void **state)
{
	static const char *const faults[] = {
		"{\"clear\":true,\"fault\":{\"shift_range\":100,\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"content_range\":\"\",\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"content_range\":\"bytes 9-1/2\",\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"content_range\":\"bytes "
		"100-199/300001\",\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"content_range\":\"bytes "
		"100-198/300000\",\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"content_range\":\"bytes "
		"-1-199/300000\",\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"status\":416,\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"status\":206,\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"status\":200,\"body\":\"hello\",\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"status\":204,\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"status\":501,\"count\":-1}}",
		"{\"clear\":true,\"fault\":{\"status\":307,\"count\":-1}}",
	};

	for (size_t i = 0; i < countof(faults); i++) {
		tell(&server, faults[i]);
		int got = read_in(100, 100, 0);
		if (got != -EBADMSG)
			fail_msg("%s: %d, %s", faults[i], got, last.text);
	}
	tell(&server, "{\"clear\":true,\"fault\":{\"content_range\":\"bytes 100-199/*\"}}");
	assert_int_equal(read_in(100, 100, 0), 0);
	/* One wrong answer among right ones is got over. */
	tell(&server, "{\"clear\":true,\"fault\":{\"shift_range\":100,\"count\":1}}");
	assert_int_equal(read_in(100, 100, 0), 0);
}

static void believes_an_encoding_only_with_the_size(void **state)
{
	tell(&server, "{\"fault\":{\"encoding\":\"gzip\"}}");
	assert_int_equal(read_in(100, 100, 0), 0);
	tell(&server, "{\"fault\":{\"encoding\":\"gzip\",\"content_range\":\"bytes "
		      "100-199/*\",\"count\":-1}}");
	assert_int_equal(read_in(100, 100, 0), -EBADMSG);
}

static void maps_statuses_to_errors(void **state)
{
	tell(&server, "{\"fault\":{\"status\":404}}");
	assert_int_equal(read_in(0, 10, 0), -ENOENT);
	tell(&server, "{\"fault\":{\"status\":403}}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	assert_says("docker login 127.0.0.1");
	tell(&server, "{\"fault\":{\"status\":401}}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	tell(&server, "{\"fault\":{\"status\":418}}");
	assert_int_equal(read_in(0, 10, 0), -EBADMSG);
	assert_says("HTTP 418");
}

/* ------------------------------------------------------------------ breaks */

static void resumes_where_it_was_cut(void **state)
{
	struct net_stats stats;

	tell(&server, "{\"fault\":{\"cut_after\":100000,\"count\":2}}");
	assert_int_equal(read_in(0, BLOB_SIZE, 0), 0);
	net_stats(net, &stats);
	assert_int_equal(stats.requests, 3);
	assert_int_equal(stats.bytes, BLOB_SIZE);
	tell(&server, "{\"fault\":{\"hang_up\":true,\"count\":2}}");
	assert_int_equal(read_in(5, 5, 0), 0);
}

static void gives_up_a_stalled_connection_and_resumes(void **state)
{
	tell(&server, "{\"fault\":{\"stall_after\":1000}}");
	assert_int_equal(read_in(0, BLOB_SIZE, 2000), 0);
	assert_in_range(last_ms, 400, 1900);
	tell(&server, "{\"fault\":{\"delay\":3600}}");
	assert_int_equal(read_in(0, 100, 2000), 0);
}

static void ends_by_the_deadline(void **state)
{
	tell(&server, "{\"fault\":{\"stall_after\":1000,\"count\":-1}}");
	assert_int_equal(read_in(0, 100, 500), 0);
	assert_int_equal(read_in(0, 5000, 500), -ETIMEDOUT);
	assert_in_range(last_ms, 100, 1000);
	tell(&server, "{\"clear\":true,\"fault\":{\"status\":500,\"count\":-1}}");
	assert_int_equal(read_in(0, 5000, 700), -ETIMEDOUT);
	assert_in_range(last_ms, 200, 1200);
	assert_says("HTTP 500");
}

static void a_stream_has_no_deadline_but_patience(void **state)
{
	struct registry *r = open_registry();
	struct reading rd;

	tell(&server, "{\"fault\":{\"rate\":200000,\"cut_after\":150000}}");
	tell(&server, "{\"fault\":{\"rate\":200000}}");
	reading_init(&rd, 0, BLOB_SIZE, 800);
	rd.t.is_stream = true;
	begin(&rd, r);
	assert_int_equal(reading_wait(&rd), 0);
	tell(&server, "{\"clear\":true,\"fault\":{\"stall_after\":0,\"count\":-1}}");
	reading_init(&rd, 0, BLOB_SIZE, 800);
	rd.t.is_stream = true;
	begin(&rd, r);
	assert_int_equal(reading_wait(&rd), -ETIMEDOUT);
	registry_unref(r);
}

static void waits_as_long_as_it_is_asked_to(void **state)
{
	tell(&server, "{\"fault\":{\"status\":429,\"headers\":{\"Retry-After\":\"1\"}}}");
	assert_int_equal(read_in(0, 100, 5000), 0);
	assert_in_range(last_ms, 1000, 2500);
	tell(&server, "{\"fault\":{\"status\":503,\"count\":3}}");
	assert_int_equal(read_in(0, 100, 5000), 0);
	/* There is no point in waiting for an answer that would come too late. */
	tell(&server, "{\"fault\":{\"status\":429,\"headers\":{\"Retry-After\":\"3600\"}}}");
	assert_int_equal(read_in(0, 100, 5000), -ETIMEDOUT);
	assert_in_range(last_ms, 0, 1000);
	assert_says("HTTP 429, and asks to wait 3600 s");
}

static void says_when_nobody_is_there(void **state)
{
	scoped(registry_unref) struct registry *r = NULL;
	scoped(strbuf_free) struct strbuf body = {0};
	char *type = NULL;
	uint64_t from = now_ns();

	assert_int_equal(registry_new(&r, net, "127.0.0.1:1", "a", &last), 0);
	assert_int_equal(registry_get_manifest(r, "latest", &body, &type, &last), -ECONNREFUSED);
	assert_says("127.0.0.1:1/a: manifests/latest: ");
	assert_in_range((now_ns() - from) / NS_PER_MS, 0, 3000);

	scoped(registry_unref) struct registry *r2 = NULL;
	assert_int_equal(registry_new(&r2, net, "host.invalid", "a", &last), 0);
	assert_int_equal(registry_get_manifest(r2, "latest", &body, &type, &last), -ENETUNREACH);
}

/* ------------------------------------------------------------------ ends by will */

static void ends_with_what_the_taker_says(void **state)
{
	scoped(registry_unref) struct registry *r = open_registry();
	struct reading rd;

	reading_init(&rd, 0, BLOB_SIZE, 0);
	rd.stop_with = -ENOSPC;
	begin(&rd, r);
	assert_int_equal(reading_wait(&rd), -ENOSPC);
}

static void ends_when_cancelled(void **state)
{
	scoped(registry_unref) struct registry *r = open_registry();
	struct remote *remote = registry_remote(r);
	struct reading rd;

	tell(&server, "{\"fault\":{\"stall_after\":1000,\"count\":-1}}");
	reading_init(&rd, 0, BLOB_SIZE, 0);
	begin(&rd, r);
	remote->ops->cancel(remote, &rd.t);
	remote->ops->cancel(remote, &rd.t);
	assert_int_equal(reading_wait(&rd), -ECANCELED);
	remote->ops->cancel(remote, &rd.t); /* too late, and harmless */
}

static void freeing_the_net_cancels_everything(void **state)
{
	enum { N = 60 };
	static struct reading all[N];
	scoped(registry_unref) struct registry *r = open_registry();
	struct net_options options = {0};

	tell(&server, "{\"set\":{\"auth\":\"token\"}}");
	tell(&server, "{\"fault\":{\"delay\":3600,\"count\":-1}}");
	for (int i = 0; i < N; i++) {
		reading_init(&all[i], 0, 100, 0);
		begin(&all[i], r);
	}
	net_free(net);
	for (int i = 0; i < N; i++)
		assert_int_equal(reading_wait(&all[i]), -ECANCELED);
	assert_int_equal(net_new(&net, &options, NULL), 0);
}

static void offline_asks_nobody(void **state)
{
	struct net_options options = {.offline = true};
	struct net *other = net;
	struct net_stats stats;

	assert_int_equal(net_new(&net, &options, NULL), 0);
	assert_int_equal(read_in(0, 10, 0), -ENETUNREACH);
	assert_says("--offline");
	net_stats(net, &stats);
	assert_int_equal(stats.requests, 0);
	net_free(net);
	net = other;
}

static void keeps_to_the_rate(void **state)
{
	enum { N = 4 };
	struct reading all[N];
	struct net_options options = {.max_rate = 400000};
	struct net *other = net;
	uint64_t from = now_ns();

	assert_int_equal(net_new(&net, &options, NULL), 0);
	scoped(registry_unref) struct registry *r = open_registry();
	for (int i = 0; i < N; i++) {
		reading_init(&all[i], 0, 200000, 0);
		begin(&all[i], r);
	}
	for (int i = 0; i < N; i++)
		assert_int_equal(reading_wait(&all[i]), 0);
	assert_in_range((now_ns() - from) / NS_PER_MS, 1200, 4000);
	net_free(net);
	net = other;
}

/* ------------------------------------------------------------------ redirects */

static void follows_a_redirect_once_for_all(void **state)
{
	enum { N = 30 };
	static struct reading all[N];
	scoped(registry_unref) struct registry *r = open_registry();

	set_config("{\"auths\":{\"127.0.0.1\":{}}}");
	tell(&server, "{\"set\":{\"redirect\":true,\"auth\":\"token\"}}");
	for (int i = 0; i < N; i++) {
		reading_init(&all[i], (uint64_t)i * 500, 500, 0);
		begin(&all[i], r);
	}
	for (int i = 0; i < N; i++)
		assert_int_equal(reading_wait(&all[i]), 0);
	assert_int_equal(count_requests(&server, "registry", 307, NULL), 1);
	assert_int_equal(count_requests(&server, "registry", 401, NULL), 1);
	assert_int_equal(count_requests(&server, "token", 0, NULL), 1);
	assert_int_equal(count_requests(&server, "cdn", 206, "none"), N);
	assert_int_equal(count_requests(&server, "cdn", 0, NULL), N);
}

static void finds_an_expired_place_anew(void **state)
{
	static const int statuses[] = {400, 401, 403, 404};
	char text[200];

	for (size_t i = 0; i < countof(statuses); i++) {
		scoped(registry_unref) struct registry *r = open_registry();
		struct reading rd;
		snprintf(text, sizeof(text),
			 "{\"clear\":true,\"set\":{\"redirect\":true,\"redirect_uses\":2,"
			 "\"redirect_expired\":%d}}",
			 statuses[i]);
		tell(&server, text);
		for (int k = 0; k < 6; k++) {
			reading_init(&rd, (uint64_t)k * 500, 500, 0);
			begin(&rd, r);
			assert_int_equal(reading_wait(&rd), 0);
		}
		assert_int_equal(count_requests(&server, "registry", 307, NULL), 3);
	}
	tell(&server, "{\"clear\":true,\"set\":{\"redirect_ttl\":0,\"redirect_expired\":403}}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	assert_says("HTTP 403 from 127.0.0.1");
	assert_null(strstr(last.text, "signature"));
	assert_int_equal(count_requests(&server, "registry", 307, NULL), 2);
}

static void resumes_a_redirected_stream(void **state)
{
	tell(&server, "{\"set\":{\"redirect\":true,\"redirect_uses\":1},"
		      "\"fault\":{\"where\":\"cdn\",\"cut_after\":70000,\"count\":-1}}");
	assert_int_equal(read_in(0, BLOB_SIZE, 0), 0);
}

static void does_not_redirect_for_ever(void **state)
{
	tell(&server, "{\"fault\":{\"status\":302,\"headers\":{\"Location\":\"/v2/x\"},"
		      "\"count\":-1}}");
	assert_int_equal(read_in(0, 10, 0), -EBADMSG);
	tell(&server, "{\"clear\":true,\"fault\":{\"status\":302,\"headers\":{\"Location\":"
		      "\"http://example.com/x\"},\"count\":-1}}");
	assert_int_equal(read_in(0, 10, 0), -EBADMSG);
	assert_says("not https");
	tell(&server, "{\"clear\":true,\"fault\":{\"status\":302,\"headers\":{\"Location\":"
		      "\"file:///etc/passwd\"},\"count\":-1}}");
	assert_int_equal(read_in(0, 10, 0), -EBADMSG);
}

/* ------------------------------------------------------------------ authorisation */

static void login(const char *entry)
{
	scoped(free) char *text = str_printf("{\"auths\":{\"%s\":{%s}}}", server.host, entry);

	set_config(text);
}

static void sends_basic_credentials(void **state)
{
	tell(&server, "{\"set\":{\"auth\":\"basic\"}}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	assert_says("needs a login; try: docker login 127.0.0.1");
	login("\"auth\":\"dXNlcjpzZWNyZXQ=\"");
	assert_int_equal(read_in(0, 10, 0), 0);
	assert_int_equal(read_in(10, 10, 0), 0);
	assert_int_equal(count_requests(&server, "registry", 401, NULL), 1);
}

static void refuses_wrong_credentials(void **state)
{
	tell(&server, "{\"set\":{\"auth\":\"basic\"}}");
	login("\"auth\":\"dXNlcjp3cm9uZw==\"");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	assert_says("HTTP 401, access denied");
	assert_null(strstr(last.text, "wrong"));
	tell(&server, "{\"set\":{\"auth\":\"token\"}}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	assert_says("refuses the stored credentials");
	assert_null(strstr(last.text, "wrong"));
}

static void gets_tokens(void **state)
{
	tell(&server, "{\"set\":{\"auth\":\"token\"}}");
	assert_int_equal(read_in(0, 10, 0), 0);
	assert_int_equal(read_in(10, 10, 0), 0);
	assert_int_equal(count_requests(&server, "token", 200, "none"), 1);
	assert_int_equal(count_requests(&server, "registry", 401, NULL), 1);
	/* In the middle of its life. */
	tell(&server, "{\"revoke\":true}");
	assert_int_equal(read_in(0, 10, 0), 0);
	assert_int_equal(count_requests(&server, "token", 200, "none"), 2);
	tell(&server, "{\"set\":{\"anonymous\":false},\"revoke\":true}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	assert_says("refuses access without a login");
	login("\"auth\":\"dXNlcjpzZWNyZXQ=\"");
	tell(&server, "{\"set\":{\"token_field\":\"access_token\"}}");
	assert_int_equal(read_in(0, 10, 0), 0);
	assert_int_equal(count_requests(&server, "token", 200, "basic"), 1);
}

static void posts_identity_tokens(void **state)
{
	tell(&server,
	     "{\"set\":{\"auth\":\"token\",\"anonymous\":false,\"identity_token\":\"r+f/r=&\"}}");
	login("\"identitytoken\":\"r+f/r=&\"");
	assert_int_equal(read_in(0, 10, 0), 0);
	json_t *doc = test_registry_control(&server, "{}");
	scoped(free) char *text = json_dumps(json_object_get(doc, "log"), 0);
	assert_non_null(strstr(text, "POST"));
	json_decref(doc);
}

static void knows_when_a_token_ends(void **state)
{
	tell(&server, "{\"set\":{\"auth\":\"token\",\"token_ttl\":1}}");
	assert_int_equal(read_in(0, 10, 0), 0);
	usleep(1100000); /* what is tested is the passing of time */
	assert_int_equal(read_in(0, 10, 0), 0);
	assert_int_equal(count_requests(&server, "token", 200, NULL), 2);
	assert_int_equal(count_requests(&server, "registry", 401, NULL), 1);
}

static void many_share_one_token(void **state)
{
	enum { N = 40 };
	static struct reading all[N];
	scoped(registry_unref) struct registry *r = open_registry();

	tell(&server, "{\"set\":{\"auth\":\"token\"}}");
	assert_int_equal(read_in(0, 10, 0), 0);
	tell(&server, "{\"clear\":true,\"revoke\":true}");
	tell(&server, "{\"fault\":{\"where\":\"token\",\"delay\":0.3}}");
	for (int i = 0; i < N; i++) {
		reading_init(&all[i], (uint64_t)i * 1000, 1000, 0);
		begin(&all[i], r);
	}
	for (int i = 0; i < N; i++)
		assert_int_equal(reading_wait(&all[i]), 0);
	assert_int_equal(count_requests(&server, "token", 200, NULL), 1);
}

static void gets_over_faults_of_the_token_service(void **state)
{
	tell(&server, "{\"set\":{\"auth\":\"token\"},\"fault\":{\"where\":\"token\",\"status\":503,"
		      "\"count\":2}}");
	tell(&server, "{\"fault\":{\"where\":\"token\",\"hang_up\":true}}");
	assert_int_equal(read_in(0, 10, 0), 0);
	tell(&server,
	     "{\"revoke\":true,\"fault\":{\"where\":\"token\",\"status\":200,\"body\":\"{}\"}}");
	assert_int_equal(read_in(0, 10, 0), -EBADMSG);
	assert_says("without a token");
	tell(&server, "{\"revoke\":true,\"fault\":{\"where\":\"token\",\"delay\":3600}}");
	assert_int_equal(read_in(0, 10, 500), -ETIMEDOUT);
}

static void sends_no_credentials_over_open_lines(void **state)
{
	tell(&server, "{\"set\":{\"auth\":\"token\",\"challenge\":"
		      "\"Bearer realm=\\\"http://example.com/token\\\"\"}}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	assert_says("not reached by https");
	tell(&server, "{\"set\":{\"challenge\":\"Negotiate\"}}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
}

static void renews_credentials_that_have_expired(void **state)
{
	scoped(registry_unref) struct registry *r = open_registry();
	struct reading rd;

	tell(&server, "{\"set\":{\"auth\":\"basic\"}}");
	login("\"auth\":\"dXNlcjpzZWNyZXQ=\"");
	assert_int_equal(read_in(0, 10, 0), 0);
	/* As ECR says it. */
	tell(&server, "{\"fault\":{\"status\":403}}");
	assert_int_equal(read_in(0, 10, 0), 0);
	/* And when they are others meanwhile. */
	tell(&server, "{\"set\":{\"users\":{\"user\":\"other\"}}}");
	login("\"auth\":\"dXNlcjpvdGhlcg==\"");
	reading_init(&rd, 0, 10, 0);
	begin(&rd, r);
	assert_int_equal(reading_wait(&rd), 0);
	tell(&server, "{\"set\":{\"users\":{\"user\":\"secret\"}}}");
}

static void asks_a_helper(void **state)
{
	scoped(free) char *program = str_printf("%s/docker-credential-test", server.dir);
	static const char script[] =
		"#!/bin/sh\nread server\n"
		"case \"$1 $server\" in 'get 127.0.0.1:'*)\n"
		"echo '{\"Username\":\"user\",\"Secret\":\"secret\"}';; *) echo "
		"credentials not found in native keychain; exit 1;; esac\n";

	put_file(server.dir, "docker-credential-test", script, strlen(script));
	assert_int_equal(chmod(program, 0755), 0);
	tell(&server, "{\"set\":{\"auth\":\"basic\"}}");
	set_config("{\"credsStore\":\"test\"}");
	assert_int_equal(read_in(0, 10, 0), 0);
	set_config("{\"credsStore\":\"is-not-there\"}");
	tell(&server, "{\"set\":{\"users\":{\"user\":\"other\"}}}");
	assert_int_equal(read_in(0, 10, 0), -EACCES);
	assert_says("docker-credential-is-not-there");
	tell(&server, "{\"set\":{\"users\":{\"user\":\"secret\"}}}");
}

/* ------------------------------------------------------------------ everything at once */

static unsigned roll(uint64_t *seed, unsigned sides)
{
	*seed = *seed * UINT64_C(6364136223846793005) + 1442695040888963407u;
	return (unsigned)(*seed >> 33) % sides;
}

/* Any mixture of faults: who gets bytes gets the right ones (reading_wait sees to that), and all
 * have an answer by their deadline. */
static void survives_any_mixture_of_faults(void **state)
{
	static const char *const faults[] = {
		"\"cut_after\":700",
		"\"stall_after\":300",
		"\"hang_up\":true",
		"\"status\":503",
		"\"status\":429,\"headers\":{\"Retry-After\":\"1\"}",
		"\"status\":500,\"body\":\"oops\"",
		"\"status\":401",
		"\"status\":403",
		"\"status\":404",
		"\"ignore_range\":true",
		"\"short_range\":333",
		"\"wide_range\":1111",
		"\"shift_range\":1",
		"\"content_range\":\"bytes 0-99/100\"",
		"\"delay\":0.2",
		"\"rate\":20000",
		"\"where\":\"token\",\"status\":500",
		"\"where\":\"cdn\",\"status\":403",
	};
	enum { N = 24, ROUNDS = 10, DEADLINE_MS = 1500 };
	static struct reading all[N];
	int n_right = 0;

	for (uint64_t round = 0; round < ROUNDS; round++) {
		scoped(registry_unref) struct registry *r = open_registry();
		uint64_t seed = round * 977 + 5, from = now_ns();
		char text[400];
		snprintf(text, sizeof(text),
			 "{\"clear\":true,\"revoke\":true,\"set\":{\"auth\":\"%s\",\"redirect\":%s}"
			 "}",
			 round % 2 ? "token" : "none", round % 3 ? "true" : "false");
		tell(&server, text);
		for (int i = 0; i < 4; i++) {
			snprintf(text, sizeof(text), "{\"fault\":{\"skip\":%u,\"count\":%u,%s}}",
				 roll(&seed, 6), 1 + roll(&seed, 5),
				 faults[roll(&seed, countof(faults))]);
			tell(&server, text);
		}
		for (int i = 0; i < N; i++) {
			reading_init(&all[i], roll(&seed, BLOB_SIZE - 5000), 1 + roll(&seed, 5000),
				     DEADLINE_MS);
			all[i].t.is_stream = roll(&seed, 4) == 0;
			begin(&all[i], r);
		}
		for (int i = 0; i < N; i++)
			n_right += reading_wait(&all[i]) == 0;
		/* A stream's patience begins anew with each byte. */
		assert_in_range((now_ns() - from) / NS_PER_MS, 0, 3 * DEADLINE_MS);
	}
	assert_in_range(n_right, N * ROUNDS / 2, N * ROUNDS);
}

/* ------------------------------------------------------------------ https */

static struct test_registry tls_server;

/* With a net of its own, over https. */
static int get_by_https(const char *ca, bool is_insecure, const char *host)
{
	struct net_options options = {.ca = ca, .insecure = is_insecure, .deadline_ms = 5000};
	scoped(strbuf_free) struct strbuf body = {0};
	scoped(free) char *type = NULL;
	struct registry *r = NULL;
	struct net *own = NULL;

	assert_int_equal(net_new(&own, &options, &last), 0);
	assert_int_equal(registry_new(&r, own, host, "team/app", &last), 0);
	int result = registry_get_manifest(r, "latest", &body, &type, &last);
	registry_unref(r);
	net_free(own);
	return result;
}

static void checks_certificates(void **state)
{
	scoped(free) char *ca = str_printf("%s/data/tls/cert.pem", getenv("TEST_SOURCE"));
	const char *usual = "/etc/ssl/certs/ca-certificates.crt";

	assert_int_equal(get_by_https(ca, false, tls_server.host), 0);
	assert_int_equal(get_by_https(NULL, true, tls_server.host), 0);
	assert_int_equal(get_by_https(NULL, false, tls_server.host), -ECONNRESET);
	assert_says("if it speaks https: --ca FILE or --insecure");
	if (access(usual, R_OK) == 0) {
		assert_int_equal(get_by_https(usual, false, tls_server.host), -ENETUNREACH);
		assert_says("certificate");
		assert_says("--ca FILE");
	}
}

static void speaks_http_after_all_on_this_host(void **state)
{
	scoped(free) char *ca = str_printf("%s/data/tls/cert.pem", getenv("TEST_SOURCE"));

	assert_int_equal(get_by_https(ca, false, server.host), 0);
	assert_int_equal(get_by_https(NULL, true, server.host), 0);
}

static int start_server(void **state)
{
	scoped(free) char *cert = str_printf("%s/data/tls/cert.pem", getenv("TEST_SOURCE"));
	scoped(free) char *key = str_printf("%s/data/tls/key.pem", getenv("TEST_SOURCE"));
	char *tls[] = {(char *)"--tls", cert, key, NULL};

	test_registry_start(&server, NULL);
	test_registry_start(&tls_server, tls);
	setenv("DOCKER_CONFIG", server.dir, 1);
	setenv("XDG_RUNTIME_DIR", server.dir, 1);
	setenv("XDG_CONFIG_HOME", server.dir, 1);
	scoped(free) char *path = str_printf("%s:%s", server.dir, getenv("PATH"));
	setenv("PATH", path, 1);
	return 0;
}

static int stop_server(void **state)
{
	test_registry_stop(&server);
	test_registry_stop(&tls_server);
	return 0;
}

#define on_server(f) cmocka_unit_test_setup_teardown(f, reset, end)

int main(void)
{
	const struct CMUnitTest tests[] = {
		on_server(reads_ranges_and_the_whole),
		on_server(refuses_ranges_outside_of_the_blob),
		on_server(keeps_connections),
		on_server(reads_many_at_once),
		on_server(gets_manifests_by_tag_and_digest),
		on_server(refuses_a_manifest_that_does_not_match),
		on_server(refuses_an_endless_manifest),
		on_server(gets_small_blobs_verified),
		on_server(takes_its_bytes_where_ranges_are_ignored),
		on_server(continues_short_and_trims_wide_answers),
		on_server(refuses_wrong_ranges),
		on_server(believes_an_encoding_only_with_the_size),
		on_server(maps_statuses_to_errors),
		on_server(resumes_where_it_was_cut),
		on_server(gives_up_a_stalled_connection_and_resumes),
		on_server(ends_by_the_deadline),
		on_server(a_stream_has_no_deadline_but_patience),
		on_server(waits_as_long_as_it_is_asked_to),
		on_server(says_when_nobody_is_there),
		on_server(ends_with_what_the_taker_says),
		on_server(ends_when_cancelled),
		on_server(freeing_the_net_cancels_everything),
		on_server(offline_asks_nobody),
		on_server(keeps_to_the_rate),
		on_server(follows_a_redirect_once_for_all),
		on_server(finds_an_expired_place_anew),
		on_server(resumes_a_redirected_stream),
		on_server(does_not_redirect_for_ever),
		on_server(sends_basic_credentials),
		on_server(refuses_wrong_credentials),
		on_server(gets_tokens),
		on_server(posts_identity_tokens),
		on_server(knows_when_a_token_ends),
		on_server(many_share_one_token),
		on_server(gets_over_faults_of_the_token_service),
		on_server(sends_no_credentials_over_open_lines),
		on_server(renews_credentials_that_have_expired),
		on_server(asks_a_helper),
		on_server(survives_any_mixture_of_faults),
		on_server(checks_certificates),
		on_server(speaks_http_after_all_on_this_host),
	};

	return cmocka_run_group_tests(tests, start_server, stop_server);
}
