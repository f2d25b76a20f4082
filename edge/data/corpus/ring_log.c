/*
 * ring_log.c - keeps the last events of a device in a fixed piece of memory.
 *
 * The memory may be a RAM section that survives a reset, so nothing in it is trusted: the header
 * has a magic number and every record a checksum. Records have a variable length, are never
 * split, and the oldest ones make room for new ones.
 *
 * Layout of a record:  u16 length of the payload | u8 level | u8 checksum | u32 time | payload
 * A length of 0xffff says that the rest up to the end of the buffer is unused.
 */

#include <inttypes.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#define RING_MAGIC   0x52494e47u
#define RING_WRAP    0xffffu
#define RECORD_HEAD  8u
#define MAX_PAYLOAD  120u

enum ring_level { RING_DEBUG, RING_INFO, RING_WARNING, RING_ERROR };

struct ring_log {
	uint32_t magic;
	uint32_t size;		/* bytes in data */
	uint32_t head;		/* where the next record goes */
	uint32_t tail;		/* the oldest record */
	uint32_t count;
	uint32_t lost;		/* records overwritten since the start */
	uint8_t data[];
};

struct ring_record {
	uint32_t time_ms;
	enum ring_level level;
	size_t length;
	char text[MAX_PAYLOAD + 1];
};

static void put16(uint8_t *p, uint16_t v)
{
	p[0] = (uint8_t)v;
	p[1] = (uint8_t)(v >> 8);
}

static void put32(uint8_t *p, uint32_t v)
{
	put16(p, (uint16_t)v);
	put16(p + 2, (uint16_t)(v >> 16));
}

static uint16_t get16(const uint8_t *p)
{
	return (uint16_t)(p[0] | p[1] << 8);
}

static uint32_t get32(const uint8_t *p)
{
	return get16(p) | (uint32_t)get16(p + 2) << 16;
}

/* Covers everything of a record but the checksum itself. */
static uint8_t checksum(const uint8_t *record, size_t payload)
{
	uint8_t sum = 0xa5;

	for (size_t i = 0; i < RECORD_HEAD + payload; i++) {
		if (i == 3)
			continue;
		sum = (uint8_t)((sum << 1 | sum >> 7) ^ record[i]);
	}
	return sum;
}

static void ring_clear(struct ring_log *log)
{
	log->head = log->tail = log->count = log->lost = 0;
}

/* Steps over a wrap mark, or over a piece at the end that is too short to hold one. */
static uint32_t normalise(const struct ring_log *log, uint32_t at)
{
	if (log->size - at < RECORD_HEAD || get16(log->data + at) == RING_WRAP)
		return 0;
	return at;
}

static bool record_is_sound(const struct ring_log *log, uint32_t at)
{
	const uint8_t *p;
	uint16_t length;

	if (at > log->size || log->size - at < RECORD_HEAD)
		return false;
	p = log->data + at;
	length = get16(p);
	if (length > MAX_PAYLOAD || length > log->size - at - RECORD_HEAD)
		return false;
	return p[2] <= RING_ERROR && p[3] == checksum(p, length);
}

static bool ring_is_sound(const struct ring_log *log)
{
	uint32_t at = log->tail;
	bool wrapped = false;

	if (at > log->size || log->head > log->size)
		return false;
	for (uint32_t i = 0; i < log->count; i++) {
		uint32_t start = normalise(log, at);

		if (start < at) {
			if (wrapped)
				return false;
			wrapped = true;
		}
		if (!record_is_sound(log, start))
			return false;
		at = start + RECORD_HEAD + get16(log->data + start);
		if (wrapped && at > log->tail)
			return false;
	}
	return at == log->head;
}

/*
 * Takes the memory over. What is in it is kept if all of it is sound.
 * Returns NULL if the memory is too small or not aligned.
 */
struct ring_log *ring_open(void *memory, size_t bytes, bool *kept)
{
	struct ring_log *log = memory;
	size_t least = sizeof *log + 2 * (RECORD_HEAD + MAX_PAYLOAD);

	if (bytes < least || bytes > UINT32_MAX || (uintptr_t)memory % _Alignof(struct ring_log))
		return NULL;
	*kept = log->magic == RING_MAGIC && log->size == bytes - sizeof *log && ring_is_sound(log);
	if (!*kept) {
		log->magic = RING_MAGIC;
		log->size = (uint32_t)(bytes - sizeof *log);
		ring_clear(log);
	}
	return log;
}

static void drop_oldest(struct ring_log *log)
{
	uint32_t next = log->tail + RECORD_HEAD + get16(log->data + log->tail);

	/* Here and now, while the wrap mark is still there: new records may overwrite it. */
	log->tail = --log->count > 0 ? normalise(log, next) : next;
	log->lost++;
}

/* Drops old records until [from, from + need) overlaps none of them. */
static void make_room(struct ring_log *log, uint32_t from, uint32_t need)
{
	while (log->count > 0 && log->tail >= from && log->tail < from + need)
		drop_oldest(log);
}

void ring_write(struct ring_log *log, uint32_t time_ms, enum ring_level level, const char *text)
{
	size_t length = strlen(text);
	uint32_t need;
	uint8_t *p;

	if (length > MAX_PAYLOAD)
		length = MAX_PAYLOAD;
	need = RECORD_HEAD + (uint32_t)length;
	if (log->size - log->head < need) {
		make_room(log, log->head, log->size - log->head);
		if (log->size - log->head >= RECORD_HEAD)
			put16(log->data + log->head, RING_WRAP);
		log->head = 0;
	}
	make_room(log, log->head, need);
	if (log->count == 0)
		log->tail = log->head;

	p = log->data + log->head;
	put16(p, (uint16_t)length);
	p[2] = (uint8_t)level;
	put32(p + 4, time_ms);
	memcpy(p + RECORD_HEAD, text, length);
	p[3] = checksum(p, length);
	log->head += need;
	log->count++;
}

#if defined(__GNUC__)
__attribute__((format(printf, 4, 5)))
#endif
void ring_printf(struct ring_log *log, uint32_t time_ms, enum ring_level level, const char *format, ...)
{
	char text[MAX_PAYLOAD + 1];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(text, sizeof text, format, arguments);
	va_end(arguments);
	ring_write(log, time_ms, level, text);
}

/* Calls `visit` for every record, oldest first, until it returns false. */
void ring_each(const struct ring_log *log, bool (*visit)(const struct ring_record *, void *), void *context)
{
	struct ring_record record;
	uint32_t at = log->tail;

	for (uint32_t i = 0; i < log->count; i++) {
		const uint8_t *p;

		at = normalise(log, at);
		p = log->data + at;
		record.length = get16(p);
		record.level = (enum ring_level)p[2];
		record.time_ms = get32(p + 4);
		memcpy(record.text, p + RECORD_HEAD, record.length);
		record.text[record.length] = '\0';
		if (!visit(&record, context))
			return;
		at += RECORD_HEAD + (uint32_t)record.length;
	}
}

#ifdef RING_DEMO
static bool print_record(const struct ring_record *record, void *context)
{
	static const char *const names[] = { "debug", "info", "warning", "error" };

	fprintf(context, "%8" PRIu32 " %-7s %s\n", record->time_ms, names[record->level], record->text);
	return true;
}

int main(void)
{
	static _Alignas(8) unsigned char memory[512];
	bool kept;
	struct ring_log *log = ring_open(memory, sizeof memory, &kept);

	for (uint32_t i = 0; i < 40; i++)
		ring_printf(log, i * 250, i % 7 ? RING_INFO : RING_WARNING, "pump %" PRIu32 " at %" PRIu32 " rpm", i % 3, 900 + i * 11);
	log = ring_open(memory, sizeof memory, &kept);
	ring_each(log, print_record, stdout);
	printf("%s, %" PRIu32 " lost\n", kept ? "kept" : "cleared", log->lost);
	return kept ? 0 : 1;
}
#endif
