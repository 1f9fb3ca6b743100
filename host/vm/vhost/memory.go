package vhost

import (
	"fmt"
	"sync/atomic"
)

// Memory is one memory table: the guest's memory as this process sees it.
// It is replaced as a whole; users of an old one keep it mapped by a reference
// until they are done.
type Memory struct {
	regions []region
	refs    atomic.Int64
	unmap   func()
}

type region struct {
	guest uint64
	user  uint64
	bytes []byte
}

// newMemory returns a table over regions with one reference, the caller's.
// unmap is called when the last reference is gone.
func newMemory(regions []region, unmap func()) (*Memory, error) {
	for i, r := range regions {
		n := uint64(len(r.bytes))
		if n == 0 || r.guest+n < r.guest || r.user+n < r.user {
			return nil, fmt.Errorf("memory region %d is empty or wraps around: guest %#x, user %#x, %d bytes", i, r.guest, r.user, n)
		}
		for j, o := range regions[:i] {
			if overlap(r.guest, n, o.guest, uint64(len(o.bytes))) || overlap(r.user, n, o.user, uint64(len(o.bytes))) {
				return nil, fmt.Errorf("memory regions %d and %d overlap", j, i)
			}
		}
	}
	m := &Memory{regions: regions, unmap: unmap}
	m.refs.Store(1)
	return m, nil
}

func overlap(a, an, b, bn uint64) bool { return a < b+bn && b < a+an }

func (m *Memory) retain() { m.refs.Add(1) }

func (m *Memory) release() {
	if m.refs.Add(-1) == 0 && m.unmap != nil {
		m.unmap()
	}
}

// appendGuest appends to out the n bytes at the guest-physical address addr;
// they are one slice unless they cross from one region into the next. It
// reports whether all of them exist.
func (m *Memory) appendGuest(out [][]byte, addr, n uint64) ([][]byte, bool) {
next:
	for n > 0 {
		for i := range m.regions {
			r := &m.regions[i]
			// Subtractions only, on values that cannot underflow: an
			// address near 2^64 must not wrap into a region.
			if addr < r.guest || addr-r.guest >= uint64(len(r.bytes)) {
				continue
			}
			off := addr - r.guest
			k := min(n, uint64(len(r.bytes))-off)
			out = append(out, r.bytes[off:off+k:off+k])
			addr, n = addr+k, n-k
			continue next
		}
		return out, false
	}
	return out, true
}

// atUser returns the n bytes at QEMU's address addr; they must lie in one
// region.
func (m *Memory) atUser(addr, n uint64) ([]byte, error) {
	for i := range m.regions {
		r := &m.regions[i]
		if addr < r.user || addr-r.user >= uint64(len(r.bytes)) {
			continue
		}
		off := addr - r.user
		if n > uint64(len(r.bytes))-off {
			break
		}
		return r.bytes[off : off+n : off+n], nil
	}
	return nil, fmt.Errorf("%d bytes at %#x are not in the guest's memory", n, addr)
}
