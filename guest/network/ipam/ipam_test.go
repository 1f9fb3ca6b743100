package ipam_test

import (
	"errors"
	"net/netip"
	"testing"

	"dhow/guest/network/ipam"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

func pool(t testing.TB, prefix string, reserved ...string) *ipam.Pool {
	t.Helper()
	var r []netip.Addr
	for _, s := range reserved {
		r = append(r, addr(s))
	}
	p, err := ipam.New(netip.MustParsePrefix(prefix), r...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestLowestFreeAddressFirst(t *testing.T) {
	p := pool(t, "172.17.0.0/16", "172.17.0.1")
	for _, want := range []string{"172.17.0.2", "172.17.0.3", "172.17.0.4"} {
		if got, err := p.Next(); err != nil || got != addr(want) {
			t.Errorf("%v, %v; want %s", got, err, want)
		}
	}
	p.Release(addr("172.17.0.3"))
	p.Release(addr("172.17.0.3")) // twice is once
	if got, err := p.Next(); err != nil || got != addr("172.17.0.3") {
		t.Errorf("%v, %v after a release", got, err)
	}
	if err := p.Take(addr("172.17.0.5")); err != nil {
		t.Error(err)
	}
	if got, err := p.Next(); err != nil || got != addr("172.17.0.6") {
		t.Errorf("%v, %v beside a taken one", got, err)
	}
}

func TestPoolRunsOutAndComesBack(t *testing.T) {
	p := pool(t, "10.0.0.0/24", "10.0.0.1")
	seen := map[netip.Addr]bool{}
	for range 253 {
		a, err := p.Next()
		if err != nil || seen[a] {
			t.Fatalf("%v, %v after %d", a, err, len(seen))
		}
		seen[a] = true
	}
	for _, never := range []string{"10.0.0.0", "10.0.0.1", "10.0.0.255"} {
		if seen[addr(never)] {
			t.Errorf("gave %s", never)
		}
	}
	if _, err := p.Next(); !errors.Is(err, ipam.ErrExhausted) || p.Free() != 0 {
		t.Errorf("%v with %d free", err, p.Free())
	}
	p.Release(addr("10.0.0.0"))
	p.Release(addr("10.0.0.255"))
	p.Release(addr("10.0.1.7"))
	if p.Free() != 0 {
		t.Error("a release freed what is never given")
	}
	p.Release(addr("10.0.0.77"))
	if a, err := p.Next(); err != nil || a != addr("10.0.0.77") {
		t.Errorf("%v, %v", a, err)
	}
}

func TestTake(t *testing.T) {
	p := pool(t, "10.0.0.0/30", "10.0.0.1")
	for s, want := range map[string]error{"10.0.0.1": ipam.ErrInUse, "10.0.0.0": ipam.ErrInUse, "10.0.0.3": ipam.ErrInUse} {
		if err := p.Take(addr(s)); !errors.Is(err, want) {
			t.Errorf("%s: %v", s, err)
		}
	}
	for _, s := range []string{"10.0.0.4", "::1"} {
		if err := p.Take(addr(s)); err == nil || errors.Is(err, ipam.ErrInUse) {
			t.Errorf("%s: %v", s, err)
		}
	}
	if err := p.Take(addr("::ffff:10.0.0.2")); err != nil {
		t.Error(err)
	}
	if p.Free() != 0 {
		t.Errorf("%d free", p.Free())
	}
}

func TestNewRefusesWhatItCannotHold(t *testing.T) {
	for _, s := range []string{"10.0.0.0/31", "10.0.0.0/32", "10.0.0.0/8", "fd00::/64"} {
		if _, err := ipam.New(netip.MustParsePrefix(s)); err == nil {
			t.Errorf("%s: no error", s)
		}
	}
	if _, err := ipam.New(netip.Prefix{}); err == nil {
		t.Error("zero prefix: no error")
	}
	if _, err := ipam.New(netip.MustParsePrefix("10.0.0.0/24"), addr("10.0.1.1")); err == nil {
		t.Error("foreign reserved address: no error")
	}
}

// FuzzPool compares the pool with a set, operation by operation.
func FuzzPool(f *testing.F) {
	f.Add([]byte{0, 0, 1, 2, 0, 2, 3})
	f.Fuzz(func(t *testing.T, ops []byte) {
		p := pool(t, "10.0.0.0/25", "10.0.0.1")
		used := map[byte]bool{0: true, 1: true, 127: true}
		for i := 0; i+1 < len(ops); i += 2 {
			n := ops[i+1] % 128
			a := netip.AddrFrom4([4]byte{10, 0, 0, n})
			switch ops[i] % 3 {
			case 0:
				want := byte(0)
				for used[want] && want < 128 {
					want++
				}
				got, err := p.Next()
				if want == 128 {
					if !errors.Is(err, ipam.ErrExhausted) {
						t.Fatalf("full: %v, %v", got, err)
					}
				} else if err != nil || got.As4()[3] != want {
					t.Fatalf("next: %v, %v; want .%d", got, err, want)
				}
				used[want] = true
			case 1:
				if err := p.Take(a); (err != nil) != used[n] {
					t.Fatalf("take %v: %v, used %v", a, err, used[n])
				}
				used[n] = true
			case 2:
				p.Release(a)
				if n != 0 && n != 127 {
					used[n] = false
				}
			}
			delete(used, 128)
			count := 0
			for _, u := range used {
				if u {
					count++
				}
			}
			if p.Free() != 128-count {
				t.Fatalf("%d free, want %d", p.Free(), 128-count)
			}
		}
	})
}
