//go:build linux

package store

import (
	"testing"

	"dhow/internal/errdefs"
)

func TestLayersShareMemory(t *testing.T) {
	s := &Store{}
	a, b := layerJob{s: s}, layerJob{s: s}
	if err := a.reserve(maxUnpackMemory - 100); err != nil {
		t.Fatal(err)
	}
	if err := b.reserve(100); err != nil {
		t.Fatal(err)
	}
	if err := b.reserve(1); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("err = %v, want Unavailable", err)
	}
	b.unreserve()
	if err := a.reserve(100); err != nil {
		t.Error(err)
	}
	a.unreserve()
	a.unreserve()
	if n := s.UnpackMemory(0); n != 0 {
		t.Errorf("%d bytes are counted for nothing", n)
	}
}
