package inflate

import "encoding/binary"

// fastInput is how much input the fast loop wants to see: each step refills
// the bit buffer three times at most, by eight bytes that are there.
const fastInput = 32

// fast decodes symbols while there is input for the next step and room for its
// output. It returns true at the end of the block.
func (z *Reader) fast() (ended bool, err error) {
	in, out, lit, dist := z.in[:z.end], z.out, z.lit, z.dist
	pos, w, history := z.pos, z.w, z.history
	bits, nbits := z.bits, z.nbits
	lastPos, lastW := z.end-fastInput, len(out)-slack
	var e entry
	for pos <= lastPos && w < lastW {
		// At least 56 bits. Those above nbits are the next ones too: loading
		// them again changes nothing.
		bits |= binary.LittleEndian.Uint64(in[pos:]) << (nbits & 63)
		pos += int((63 - nbits) >> 3)
		nbits |= 56

		// Up to three literals, of at most 11 bits each, then 23 bits are left:
		// enough for a length, which takes 20.
		e = lit[bits&(1<<litBits-1)]
		if e&entryLiteral != 0 {
			bits >>= e & 63
			nbits -= uint(e & 63)
			out[w] = byte(e >> 16)
			w++
			e = lit[bits&(1<<litBits-1)]
			if e&entryLiteral != 0 {
				bits >>= e & 63
				nbits -= uint(e & 63)
				out[w] = byte(e >> 16)
				w++
				e = lit[bits&(1<<litBits-1)]
				if e&entryLiteral != 0 {
					bits >>= e & 63
					nbits -= uint(e & 63)
					out[w] = byte(e >> 16)
					w++
					continue
				}
			}
		}
		if e&entryOther != 0 {
			if e&entryPointer != 0 {
				bits >>= litBits
				nbits -= litBits
				e = lit[(uint64(base(e))+bits&(1<<codeBits(e)-1))&(litSize-1)]
			}
			if e&entryLiteral != 0 {
				bits >>= e & 63
				nbits -= uint(e & 63)
				out[w] = byte(e >> 16)
				w++
				continue
			}
			if e&entryOther != 0 {
				if ended = e&entryEnd != 0; ended {
					bits >>= e & 63
					nbits -= uint(e & 63)
				} else {
					err = z.malformed("code")
				}
				break
			}
		}
		length := base(e) + int(bits&(1<<(e&63)-1)>>codeBits(e))
		bits >>= e & 63
		nbits -= uint(e & 63)

		bits |= binary.LittleEndian.Uint64(in[pos:]) << (nbits & 63)
		pos += int((63 - nbits) >> 3)
		nbits |= 56
		e = dist[bits&(1<<distBits-1)]
		if e&entryOther != 0 {
			if e&entryPointer != 0 {
				bits >>= distBits
				nbits -= distBits
				e = dist[(uint64(base(e))+bits&(1<<codeBits(e)-1))&(distSize-1)]
			}
			if e&entryOther != 0 {
				err = z.malformed("code")
				break
			}
		}
		d := base(e) + int(bits&(1<<(e&63)-1)>>codeBits(e))
		bits >>= e & 63
		nbits -= uint(e & 63)
		if d > w-history {
			err = z.malformed("distance beyond the beginning")
			break
		}
		end := w + length
		switch {
		case d >= 8: // what is written too much is overwritten, or not read
			for from := w - d; w < end; from, w = from+8, w+8 {
				binary.LittleEndian.PutUint64(out[w:], binary.LittleEndian.Uint64(out[from:]))
			}
			w = end
		case d == 1:
			run := uint64(out[w-1]) * 0x0101010101010101
			for ; w < end; w += 8 {
				binary.LittleEndian.PutUint64(out[w:], run)
			}
			w = end
		default:
			for ; w < end; w++ {
				out[w] = out[w-d]
			}
		}
	}
	z.pos, z.w, z.bits, z.nbits = pos, w, bits, nbits
	return ended, err
}
