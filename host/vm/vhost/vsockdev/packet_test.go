package vsockdev

import (
	"bytes"
	"encoding/hex"
	"math/rand/v2"
	"testing"
)

func TestHeader(t *testing.T) {
	h := header{
		SrcCID: 2, DstCID: 0x0123456789abcdef, SrcPort: 0x11223344, DstPort: 1024,
		Len: 0x10000, Type: typeStream, Op: opData, Flags: shutBoth, BufAlloc: 256 << 10, FwdCnt: 0xfffffffe,
	}
	var b [headerSize]byte
	h.put(&b)
	const want = "0200000000000000" + "efcdab8967452301" + "44332211" + "00040000" +
		"00000100" + "0100" + "0500" + "03000000" + "00000400" + "feffffff"
	if got := hex.EncodeToString(b[:]); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	var back header
	back.parse(&b)
	if back != h {
		t.Errorf("%+v, want %+v", back, h)
	}
}

func TestScatterGather(t *testing.T) {
	data := []byte("0123456789")
	for _, sizes := range [][]int{{10}, {1, 9}, {3, 3, 3, 1}, {1, 1, 1, 1, 1, 1, 1, 1, 1, 1}, {4, 20}} {
		var parts, again [][]byte
		for _, n := range sizes {
			p := make([]byte, n)
			parts, again = append(parts, p), append(again, p)
		}
		room := total(parts)
		left := scatter(scatter(parts, data[:4]), data[4:])
		if total(left) != room-len(data) {
			t.Errorf("%v: %d left", sizes, total(left))
		}
		got := make([]byte, 7)
		rest := gather(again, got)
		if string(got) != "0123456" || string(bytes.Join(rest, nil)[:3]) != "789" {
			t.Errorf("%v: %q and %q", sizes, got, bytes.Join(rest, nil))
		}
	}
}

// The window against the simplest thing that does the same.
func TestWindow(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var w window
		var want bytes.Buffer
		for range 200 {
			if r.IntN(2) == 0 {
				b := make([]byte, r.IntN(min(30000, fullWindow-w.len())+1))
				for i := range b {
					b[i] = byte(r.Uint32())
				}
				w.write(b)
				want.Write(b)
			} else {
				b, c := make([]byte, r.IntN(40000)), []byte(nil)
				b = b[:w.read(b)]
				c = want.Next(len(b))
				if !bytes.Equal(b, c) {
					t.Fatal("what was read differs from what was written")
				}
			}
			if w.len() != want.Len() || (w.buf == nil) != (w.len() == 0) {
				t.Fatalf("%d bytes, want %d; has a buffer: %v", w.len(), want.Len(), w.buf != nil)
			}
		}
		w.drop()
		if w.len() != 0 || w.buf != nil {
			t.Fatal("something is left")
		}
	}
}

func TestFIFO(t *testing.T) {
	var f fifo[int]
	next, want := 0, 0
	r := rand.New(rand.NewPCG(3, 4))
	for range 10000 {
		if r.IntN(5) < 3 {
			f.push(next)
			next++
		} else if f.len() > 0 {
			if f.head() != want || f.pop() != want {
				t.Fatal("out of order")
			}
			want++
		}
		if f.len() != next-want {
			t.Fatalf("%d items, want %d", f.len(), next-want)
		}
	}
	f.tidy(0, func(i int) bool { return i%2 == 0 })
	for f.len() > 0 {
		if f.pop()%2 != 0 {
			t.Fatal("tidy kept what it should not")
		}
	}
	if cap(f.items) > 3*next {
		t.Errorf("room for %d items after %d", cap(f.items), next)
	}
}

// FuzzPackets runs a program of a hostile guest and a careless host on a
// device: packets (with every field chosen by the fuzzer), and calls on the
// connections that come of it.
func FuzzPackets(f *testing.F) {
	// One step is 16 bytes: what, op, type, ports, cids, flags, payload (2), length (2),
	// alloc (3), fwd (3).
	step := func(what, o, typ, ports, cids, flags byte, payload, length uint16, alloc, fwd uint32) []byte {
		return []byte{what, o, typ, ports, cids, flags, byte(payload), byte(payload >> 8), byte(length), byte(length >> 8),
			byte(alloc), byte(alloc >> 8), byte(alloc >> 16), byte(fwd), byte(fwd >> 8), byte(fwd >> 16)}
	}
	all := func(steps ...[]byte) []byte { return bytes.Join(steps, nil) }
	f.Add(all(step(0, 1, 1, 0, 0, 0, 0, 0, 4096, 0), step(0, 5, 1, 0, 0, 0, 100, 100, 4096, 0), step(1, 0, 0, 0, 0, 0, 50, 0, 0, 0),
		step(2, 0, 0, 0, 0, 0, 999, 0, 0, 0), step(0, 6, 1, 0, 0, 0, 0, 0, 8192, 500), step(0, 4, 1, 0, 0, 3, 0, 0, 0, 0)))
	f.Add(all(step(5, 0, 0, 0, 0, 0, 0, 0, 0, 0), step(0, 2, 1, 0x80, 0, 0, 0, 0, 4096, 0), step(3, 0, 0, 0, 0, 0, 0, 0, 0, 0), step(4, 0, 0, 0, 0, 0, 0, 0, 0, 0), step(0, 3, 1, 0x80, 0, 0, 0, 0, 0, 0)))
	f.Add(all(step(0, 1, 1, 0, 0, 0, 0, 0, 0, 0), step(0, 5, 1, 0, 0, 0, 65535, 65535, 0, 0), step(0, 5, 1, 0, 0, 0, 10, 999, 0, 0), step(0, 99, 1, 0, 0, 0, 0, 0, 0, 0)))
	f.Add(all(step(0, 7, 2, 0, 0, 0, 0, 0, 0, 0), step(0, 1, 1, 1, 1, 0, 0, 0, 0, 0), step(0, 1, 1, 0, 0, 0, 0, 0, 0, 0), step(0, 1, 1, 0, 0, 0, 0, 0, 0, 0)))
	f.Fuzz(func(t *testing.T, program []byte) {
		p := newPlay(t)
		defer p.d.Close()
		for i := 0; i < 100 && len(program) >= 16; i++ {
			p.step(program[:16])
			program = program[16:]
		}
		p.drain()
		p.check()
	})
}
