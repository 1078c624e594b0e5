/*
 * zinfo SPAN < BLOB.gz > ZINFO
 *
 * The checkpoints of a gzip blob as SOCI lays them out, made with zlib: what
 * the tests hold package ztoc against. It keeps input and output whole in the
 * memory, so that there are no buffers whose ends could be mistaken for
 * something else.
 *
 * cc -o zinfo zinfo.c -lz
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { WINDOW = 32768, PIECE = 1 << 20 };

struct bytes {
	unsigned char *p;
	size_t len, cap;
};

static void die(const char *why)
{
	fprintf(stderr, "zinfo: %s\n", why);
	exit(1);
}

static void room(struct bytes *b, size_t n)
{
	if (b->len + n <= b->cap)
		return;
	b->cap = 2 * (b->len + n);
	b->p = realloc(b->p, b->cap);
	if (!b->p)
		die("out of memory");
}

static void append(struct bytes *b, const void *p, size_t n)
{
	room(b, n);
	memcpy(b->p + b->len, p, n);
	b->len += n;
}

static void little(struct bytes *b, uint64_t v, int n)
{
	for (; n > 0; n--, v >>= 8) {
		unsigned char c = v & 0xff;
		append(b, &c, 1);
	}
}

static void checkpoint(struct bytes *list, const struct bytes *out, uint64_t in, int bits)
{
	static const unsigned char zeros[WINDOW];
	size_t have = out->len < WINDOW ? out->len : WINDOW;

	little(list, in, 8);
	little(list, out->len, 8);
	little(list, (uint64_t)bits, 1);
	append(list, zeros, WINDOW - have);
	append(list, out->p + out->len - have, have);
}

int main(int argc, char **argv)
{
	struct bytes in = {0}, out = {0}, list = {0}, head = {0};
	uint64_t span = argc == 2 ? strtoull(argv[1], NULL, 10) : 0;
	uint64_t last = 0;
	int count = 0, block = 0;
	size_t n;
	z_stream z;

	if (!span)
		die("usage: zinfo SPAN");
	do {
		room(&in, PIECE);
		n = fread(in.p + in.len, 1, PIECE, stdin);
		in.len += n;
	} while (n > 0);

	memset(&z, 0, sizeof z);
	if (inflateInit2(&z, 16 + MAX_WBITS) != Z_OK)
		die("inflateInit2");
	z.next_in = in.p;
	z.avail_in = in.len;
	room(&out, PIECE);
	for (;;) {
		room(&out, PIECE);
		z.next_out = out.p + out.len;
		z.avail_out = PIECE;
		int ret = inflate(&z, Z_BLOCK);
		out.len += PIECE - z.avail_out;
		if (ret == Z_STREAM_END) {
			if (!z.avail_in)
				break;
			if (inflateReset(&z) != Z_OK)
				die("inflateReset");
			continue;
		}
		if (ret != Z_OK)
			die("not a gzip file");
		block = (z.data_type & 128) && !(z.data_type & 64);
		if (block && (out.len == 0 || out.len - last > span)) {
			checkpoint(&list, &out, in.len - z.avail_in, z.data_type & 7);
			last = out.len;
			count++;
		}
	}
	little(&head, (uint64_t)count, 4);
	little(&head, span, 8);
	fwrite(head.p, 1, head.len, stdout);
	fwrite(list.p, 1, list.len, stdout);
	return fflush(stdout) ? 1 : 0;
}
