package inflate

import "math/bits"

// An entry of a decoding table says what the next bits are:
//
//	bits 0-5    how many bits it takes in all: the code and its extra bits
//	bits 8-12   how many of these are the code
//	bits 16-30  the literal; the base of the length or distance; of a pointer: where the second table begins
//	bit 13      the end of the block
//	bit 14      pointer to a second table, by as many further bits as bits 8-12 say
//	bit 15      one of the above, or no code at all: nothing that the fast path knows
//	bit 31      a literal
type entry = uint32

const (
	entryEnd     entry = 1 << 13
	entryPointer entry = 1 << 14
	entryOther   entry = 1 << 15
	entryLiteral entry = 1 << 31
)

// takes is the number of bits an entry takes in all.
func takes(e entry) uint { return uint(e & 63) }

// codeBits is the number of bits of the code alone, or of a pointer's second table.
func codeBits(e entry) uint { return uint(e >> 8 & 31) }

func base(e entry) int { return int(e >> 16 & 0x7fff) }

const (
	litBits  = 11 // one look decodes codes up to this length
	distBits = 8
	maxBits  = 15 // of a code (RFC 1951, section 3.2.7)

	// The tables are larger than any code makes them (2,342 and 402 entries), to
	// powers of two, so that a mask bounds every index.
	litSize  = 4096
	distSize = 1024

	maxLit  = 286 // symbols that may be in a block's code
	maxDist = 30
	endCode = 256
)

type (
	litTable  [litSize]entry
	distTable [distSize]entry
)

// lengthCodes are base and extra bits of the symbols 257 to 285 (RFC 1951, section 3.2.5).
var lengthCodes = [29][2]uint16{
	{3, 0}, {4, 0}, {5, 0}, {6, 0}, {7, 0}, {8, 0}, {9, 0}, {10, 0}, {11, 1}, {13, 1}, {15, 1}, {17, 1}, {19, 2}, {23, 2}, {27, 2},
	{31, 2}, {35, 3}, {43, 3}, {51, 3}, {59, 3}, {67, 4}, {83, 4}, {99, 4}, {115, 4}, {131, 5}, {163, 5}, {195, 5}, {227, 5}, {258, 0},
}

// distCodes are the same of the distance symbols.
var distCodes = [maxDist][2]uint16{
	{1, 0}, {2, 0}, {3, 0}, {4, 0}, {5, 1}, {7, 1}, {9, 2}, {13, 2}, {17, 3}, {25, 3}, {33, 4}, {49, 4}, {65, 5}, {97, 5}, {129, 6},
	{193, 6}, {257, 7}, {385, 7}, {513, 8}, {769, 8}, {1025, 9}, {1537, 9}, {2049, 10}, {3073, 10}, {4097, 11}, {6145, 11},
	{8193, 12}, {12289, 12}, {16385, 13}, {24577, 13},
}

// litEntry is a literal or length symbol's entry, for a code of n bits.
func litEntry(symbol int, n uint) entry {
	switch {
	case symbol < endCode:
		return entryLiteral | entry(symbol)<<16 | entry(n)<<8 | entry(n)
	case symbol == endCode:
		return entryOther | entryEnd | entry(n)<<8 | entry(n)
	case symbol-endCode-1 >= len(lengthCodes):
		return entryOther | entry(n)<<8 | entry(n) // 286 and 287 have codes only in the fixed code, and no meaning
	}
	c := lengthCodes[symbol-endCode-1]
	return entry(c[0])<<16 | entry(n)<<8 | entry(n+uint(c[1]))
}

func distEntry(symbol int, n uint) entry {
	if symbol >= maxDist {
		return entryOther | entry(n)<<8 | entry(n)
	}
	c := distCodes[symbol]
	return entry(c[0])<<16 | entry(n)<<8 | entry(n+uint(c[1]))
}

// symbolEntry is an entry that holds the symbol itself, for the code of the code lengths.
func symbolEntry(symbol int, n uint) entry { return entry(symbol)<<16 | entry(n)<<8 | entry(n) }

// build fills a table, 1<<primary entries and second tables behind them, from
// the lengths of the codes (RFC 1951, section 3.2.2). Codes that do not use up
// all bits are refused as zlib refuses them: but for a single code of one bit,
// and no codes at all, which decode to entryOther where they do not decode.
func build(table []entry, primary uint, lengths []uint8, make func(symbol int, n uint) entry) bool {
	var count [maxBits + 1]int
	longest := uint(0)
	for _, n := range lengths {
		count[n]++
		longest = max(longest, uint(n))
	}
	count[0] = 0
	if !complete(&count, longest) {
		return false
	}
	if longest < 2 { // the one case with gaps
		clearTable(table[:1<<primary])
	}
	var next [maxBits + 1]int // next code of each length
	for n, code := 1, 0; n <= maxBits; n++ {
		code = (code + count[n-1]) << 1
		next[n] = code
	}
	s := &secondTables{table: table, primary: primary, free: 1 << primary, count: &count, longest: longest}
	for n := uint(1); n <= longest; n++ {
		for symbol, l := range lengths {
			if uint(l) != n {
				continue
			}
			code := uint(bits.Reverse16(uint16(next[n])) >> (16 - n))
			next[n]++
			s.put(code, n, make(symbol, n))
		}
	}
	return true
}

func clearTable(table []entry) {
	for i := range table {
		table[i] = entryOther
	}
}

// complete tells whether codes of these counts are a code: never too many, and too few only as above.
func complete(count *[maxBits + 1]int, longest uint) bool {
	left := 1
	for n := uint(1); n <= maxBits; n++ {
		left = left<<1 - count[n]
		if left < 0 {
			return false
		}
	}
	return left == 0 || longest <= 1
}

// secondTables places codes; those longer than primary go to tables of their own, one for each beginning.
type secondTables struct {
	table   []entry
	primary uint
	free    int // where the next second table goes
	prefix  int // of the present one
	begin   int
	bits    uint
	open    bool
	count   *[maxBits + 1]int
	longest uint
	done    [maxBits + 1]int // codes placed of each length
}

// put places one code. The codes come in ascending order, shorter ones first,
// so that those with one beginning follow each other.
func (s *secondTables) put(code, n uint, e entry) {
	s.done[n]++
	if n <= s.primary {
		for i := code; i < 1<<s.primary; i += 1 << n {
			s.table[i] = e
		}
		return
	}
	prefix := int(code & (1<<s.primary - 1))
	if !s.open || prefix != s.prefix {
		s.begin, s.prefix, s.open = s.free, prefix, true
		s.bits = s.width(n)
		s.free += 1 << s.bits
		s.table[prefix] = entryOther | entryPointer | entry(s.begin)<<16 | entry(s.bits)<<8 | entry(s.primary)
	}
	rest := n - s.primary
	e -= entry(s.primary)<<8 + entry(s.primary) // the first table has taken these bits
	for i := code >> s.primary; i < 1<<s.bits; i += 1 << rest {
		s.table[s.begin+int(i)] = e
	}
}

// width is how many bits a second table needs that begins with a code of n
// bits: as many as its longest code, which is known from how many codes of
// each length are left.
func (s *secondTables) width(n uint) uint {
	left := 1<<(n-s.primary) - (s.count[n] - s.done[n] + 1)
	for ; left > 0 && n < s.longest; left = left<<1 - s.count[n] {
		n++
	}
	return n - s.primary
}
