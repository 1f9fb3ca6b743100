package ipam

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
)

// ErrExhausted says that a subnet has no free address left.
var ErrExhausted = errors.New("no available addresses on this pool")

// ErrInUse says that the address asked for is taken.
var ErrInUse = errors.New("address already in use")

// maxBits bounds a pool to 2^20 addresses, a bitmap of 128 KiB.
const maxBits = 20

// Pool is the addresses of an IPv4 subnet. Its zero value is not usable.
type Pool struct {
	prefix netip.Prefix
	base   uint32
	used   []uint64 // a bit per address, the subnet's first address is bit 0
	free   int
	hint   int // no word before it has a free bit
}

// New returns the pool of prefix, whose network and broadcast addresses and
// reserved ones are taken from the start. prefix must be IPv4, between /12 and
// /30.
func New(prefix netip.Prefix, reserved ...netip.Addr) (*Pool, error) {
	prefix = prefix.Masked()
	host := 32 - prefix.Bits()
	if !prefix.IsValid() || !prefix.Addr().Is4() || host > maxBits || host < 2 {
		return nil, fmt.Errorf("subnet %v: an IPv4 subnet between /%d and /30 is needed", prefix, 32-maxBits)
	}
	n := 1 << host
	p := &Pool{prefix: prefix, base: toInt(prefix.Addr()), used: make([]uint64, (n+63)/64), free: n}
	for i := n; i < len(p.used)*64; i++ { // bits beyond a small subnet's end
		p.used[i/64] |= 1 << (i % 64)
	}
	p.take(0)
	p.take(n - 1)
	for _, a := range reserved {
		if err := p.Take(a); err != nil {
			return nil, fmt.Errorf("reserve %v: %w", a, err)
		}
	}
	return p, nil
}

// Prefix returns the subnet.
func (p *Pool) Prefix() netip.Prefix { return p.prefix }

// Free returns how many addresses are free.
func (p *Pool) Free() int { return p.free }

// Next takes the lowest free address.
func (p *Pool) Next() (netip.Addr, error) {
	for w := p.hint; w < len(p.used); w++ {
		if p.used[w] == ^uint64(0) {
			continue
		}
		p.hint = w
		i := w*64 + bits.TrailingZeros64(^p.used[w])
		p.take(i)
		return p.addr(i), nil
	}
	p.hint = len(p.used)
	return netip.Addr{}, ErrExhausted
}

// Take takes one address. It fails with ErrInUse, or if a is not of the subnet.
func (p *Pool) Take(a netip.Addr) error {
	i, ok := p.index(a)
	if !ok {
		return fmt.Errorf("address %v is not of subnet %v", a, p.prefix)
	}
	if p.used[i/64]&(1<<(i%64)) != 0 {
		return ErrInUse
	}
	p.take(i)
	return nil
}

// Release frees an address that Next or Take gave. A free one stays free; the
// network's and broadcast addresses stay taken.
func (p *Pool) Release(a netip.Addr) {
	i, ok := p.index(a)
	if !ok || i == 0 || i == 1<<(32-p.prefix.Bits())-1 || p.used[i/64]&(1<<(i%64)) == 0 {
		return
	}
	p.used[i/64] &^= 1 << (i % 64)
	p.free++
	p.hint = min(p.hint, i/64)
}

func (p *Pool) take(i int) {
	p.used[i/64] |= 1 << (i % 64)
	p.free--
}

func (p *Pool) index(a netip.Addr) (int, bool) {
	a = a.Unmap()
	if !a.Is4() || !p.prefix.Contains(a) {
		return 0, false
	}
	return int(toInt(a) - p.base), true
}

func (p *Pool) addr(i int) netip.Addr {
	return netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, p.base+uint32(i))))
}

func toInt(a netip.Addr) uint32 {
	b := a.As4()
	return binary.BigEndian.Uint32(b[:])
}
