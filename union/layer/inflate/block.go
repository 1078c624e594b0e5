package inflate

import "io"

// blockHeader reads the three bits before a block and what its type needs. It is where checkpoints are.
func (z *Reader) blockHeader() error {
	if out := z.outOff + int64(z.w); out >= z.nextPoint || out == 0 && z.o.First {
		z.checkpoint(out)
	}
	v, err := z.take(3)
	if err != nil {
		return err
	}
	z.last = v&1 != 0
	switch v >> 1 {
	case 0:
		return z.storedHeader()
	case 1:
		return z.fixedCodes()
	case 2:
		return z.dynamicCodes()
	}
	return z.malformed("unknown block type")
}

// checkpoint reports the present position. At the beginning of a member no window is needed.
func (z *Reader) checkpoint(out int64) {
	consumed := (z.inOff+int64(z.pos))*8 - int64(z.nbits)
	c := Checkpoint{In: (consumed + 7) / 8, Out: out}
	c.Bits = uint8(c.In*8 - consumed)
	if from := max(z.history, z.w-WindowSize); from < z.w {
		c.Window = append([]byte(nil), z.out[from:z.w]...)
	}
	z.nextPoint = out + z.o.Span
	z.o.OnCheckpoint(c)
}

// blockEnd goes on to the next block, or to the end of the member.
func (z *Reader) blockEnd() error {
	z.state = (*Reader).blockHeader
	if !z.last {
		return nil
	}
	z.state = (*Reader).memberTrailer
	if z.o.Raw {
		return io.EOF
	}
	return nil
}

func (z *Reader) storedHeader() error {
	z.drop(z.nbits % 8)
	v, err := z.take(32)
	if err != nil {
		return err
	}
	if uint16(v) != ^uint16(v>>16) {
		return z.malformed("length of a stored block")
	}
	z.unread()
	z.stored, z.state = int(uint16(v)), (*Reader).storedBlock
	return nil
}

// storedBlock copies what is there.
func (z *Reader) storedBlock() error {
	if z.stored == 0 {
		return z.blockEnd()
	}
	if z.pos == z.end {
		if err := z.load(); err != nil {
			return err
		}
	}
	n := min(z.stored, z.end-z.pos, len(z.out)-slack-z.w)
	copy(z.out[z.w:z.w+n], z.in[z.pos:])
	z.w, z.pos, z.stored = z.w+n, z.pos+n, z.stored-n
	return nil
}

// fixedCodes makes the codes of RFC 1951, section 3.2.6.
func (z *Reader) fixedCodes() error {
	if z.codes.fixLit == nil {
		z.codes.fixLit, z.codes.fixDist = new(litTable), new(distTable)
		var lengths [288]uint8
		for i := range lengths {
			switch {
			case i < 144:
				lengths[i] = 8
			case i < 256:
				lengths[i] = 9
			case i < 280:
				lengths[i] = 7
			default:
				lengths[i] = 8
			}
		}
		build(z.codes.fixLit[:], litBits, lengths[:], litEntry)
		var five [32]uint8
		for i := range five {
			five[i] = 5
		}
		build(z.codes.fixDist[:], distBits, five[:], distEntry)
	}
	z.lit, z.dist, z.state = z.codes.fixLit, z.codes.fixDist, (*Reader).symbols
	return nil
}

// codeOrder is the order in which the lengths of the code length code stand (RFC 1951, section 3.2.7).
var codeOrder = [19]uint8{16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15}

// dynamicCodes reads the codes of a block.
func (z *Reader) dynamicCodes() error {
	v, err := z.take(14)
	if err != nil {
		return err
	}
	lits, dists, codes := int(v&31)+257, int(v>>5&31)+1, int(v>>10)+4
	if lits > maxLit || dists > maxDist {
		return z.malformed("too many symbols")
	}
	var code [19]uint8
	for _, i := range codeOrder[:codes] {
		v, err := z.take(3)
		if err != nil {
			return err
		}
		code[i] = uint8(v)
	}
	var table [1 << 7]entry
	if !build(table[:], 7, code[:], symbolEntry) {
		return z.malformed("code of the code lengths")
	}
	var lengths [maxLit + maxDist]uint8
	if err := z.codeLengths(&table, lengths[:lits+dists]); err != nil {
		return err
	}
	switch {
	case lengths[endCode] == 0:
		return z.malformed("no code for the end of the block")
	case !build(z.codes.lit[:], litBits, lengths[:lits], litEntry):
		return z.malformed("code of literals and lengths")
	case !build(z.codes.dist[:], distBits, lengths[lits:lits+dists], distEntry):
		return z.malformed("code of distances")
	}
	z.lit, z.dist, z.state = &z.codes.lit, &z.codes.dist, (*Reader).symbols
	return nil
}

// codeLengths reads lengths, which may be repeated.
func (z *Reader) codeLengths(table *[1 << 7]entry, lengths []uint8) error {
	for i := 0; i < len(lengths); {
		e, err := z.lookup(table[:], 7)
		if err != nil {
			return err
		}
		symbol := base(e)
		if symbol < 16 {
			lengths[i] = uint8(symbol)
			i++
			continue
		}
		repeat := [3][2]uint{{2, 3}, {3, 3}, {7, 11}}[symbol-16] // extra bits, least number
		v, err := z.take(repeat[0])
		if err != nil {
			return err
		}
		n, what := int(v)+int(repeat[1]), uint8(0)
		if symbol == 16 {
			if i == 0 {
				return z.malformed("nothing to repeat")
			}
			what = lengths[i-1]
		}
		if i+n > len(lengths) {
			return z.malformed("too many code lengths")
		}
		for ; n > 0; n-- {
			lengths[i] = what
			i++
		}
	}
	return nil
}

// lookup decodes one symbol bit by bit where it must, and takes its code; its
// extra bits are left. An entry that is none is an error, or the end of the input.
func (z *Reader) lookup(table []entry, primary uint) (entry, error) {
	for {
		e := table[z.bits&(1<<primary-1)]
		skip := uint(0)
		if e&entryPointer != 0 {
			skip = primary
			e = table[base(e)+int(z.bits>>primary&(1<<codeBits(e)-1))]
		}
		if n := skip + codeBits(e); n <= z.nbits && n > 0 {
			z.drop(n)
			if e&entryOther != 0 && e&entryEnd == 0 {
				return 0, z.malformed("code")
			}
			return e, nil
		}
		if z.nbits >= maxBits {
			return 0, z.malformed("code")
		}
		if err := z.need(z.nbits + 1); err != nil {
			return 0, err
		}
	}
}

// symbols decodes a block: by the fast loop as long as there is input and room, by single symbols else.
func (z *Reader) symbols() error {
	for z.w < len(z.out)-slack {
		step := z.slow
		if z.end-z.pos >= fastInput {
			step = z.fast
		}
		ended, err := step()
		if err != nil {
			return err
		}
		if ended {
			return z.blockEnd()
		}
	}
	return nil
}

// slow decodes one symbol.
func (z *Reader) slow() (ended bool, err error) {
	e, err := z.lookup(z.lit[:], litBits)
	switch {
	case err != nil:
		return false, err
	case e&entryLiteral != 0:
		z.out[z.w] = byte(e >> 16)
		z.w++
		return false, nil
	case e&entryEnd != 0:
		return true, nil
	}
	length, err := z.extra(e)
	if err != nil {
		return false, err
	}
	if e, err = z.lookup(z.dist[:], distBits); err != nil {
		return false, err
	}
	dist, err := z.extra(e)
	if err != nil {
		return false, err
	}
	if dist > z.w-z.history {
		return false, z.malformed("distance beyond the beginning")
	}
	for range length {
		z.out[z.w] = z.out[z.w-dist]
		z.w++
	}
	return false, nil
}

// extra adds the extra bits to the base.
func (z *Reader) extra(e entry) (int, error) {
	v, err := z.take(takes(e) - codeBits(e))
	return base(e) + int(v), err
}
