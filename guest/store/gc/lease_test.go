//go:build linux

package gc_test

import (
	"slices"
	"testing"

	"dhow/guest/store/gc"
)

// free returns what of names nobody holds.
func free(t *testing.T, l *gc.Leases, names ...string) (out []string) {
	t.Helper()
	err := l.Collect(func(held func(string) bool) error {
		for _, n := range names {
			if !held(n) {
				out = append(out, n)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestWhatIsHeldStays(t *testing.T) {
	l := gc.NewLeases()
	one, two := l.Take(), l.Take()
	one.Hold("a")
	one.Hold("a")
	two.Hold("a")
	two.Hold("b")
	if got := free(t, l, "a", "b", "c"); !slices.Equal(got, []string{"c"}) {
		t.Errorf("free: %v", got)
	}
	one.Release()
	one.Release()
	if got := free(t, l, "a", "b"); len(got) != 0 {
		t.Errorf("free: %v; the second lease holds both", got)
	}
	two.Release()
	if got := free(t, l, "a", "b"); len(got) != 2 {
		t.Errorf("free: %v", got)
	}
}

func TestWhatIsReleasedDuringASweepStaysUntilItsEnd(t *testing.T) {
	l := gc.NewLeases()
	le := l.Take()
	le.Hold("a")
	err := l.Sweep(func() error {
		// The sweep has read the roots: a has no record. Now it gets one.
		le.Release()
		if got := free(t, l, "a", "b"); !slices.Equal(got, []string{"b"}) {
			t.Errorf("free: %v", got)
		}
		return l.Sweep(func() error { return nil }) // another one ends first
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := free(t, l, "a"); len(got) != 1 {
		t.Errorf("free after the sweeps: %v", got)
	}
}
