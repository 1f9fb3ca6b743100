//go:build linux

package layer_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"testing"
	"testing/iotest"
	"time"

	"dhow/guest/store/layer"
)

func TestFanOutGivesAllToAll(t *testing.T) {
	raw := make([]byte, 3<<20+17)
	_, _ = rand.Read(raw)
	for name, src := range map[string]io.Reader{
		"whole": bytes.NewReader(raw), "halves": iotest.HalfReader(bytes.NewReader(raw)),
		"with the data": iotest.DataErrReader(bytes.NewReader(raw)), "empty": bytes.NewReader(nil),
	} {
		want := raw
		if name == "empty" {
			want = nil
		}
		sink := func(r io.Reader) error {
			got, err := io.ReadAll(r)
			if !bytes.Equal(got, want) {
				t.Errorf("%s: %d bytes of %d", name, len(got), len(want))
			}
			return err
		}
		copier := func(r io.Reader) error {
			var b bytes.Buffer
			_, err := io.Copy(&b, r) // by WriteTo
			if !bytes.Equal(b.Bytes(), want) {
				t.Errorf("%s: WriteTo gave %d bytes of %d", name, b.Len(), len(want))
			}
			return err
		}
		early := func(r io.Reader) error { _, err := io.CopyN(io.Discard, r, 10); return ignore(err, io.EOF) }
		if err := layer.FanOut(t.Context(), src, sink, copier, early, sink); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func ignore(err, drop error) error {
	if errors.Is(err, drop) {
		return nil
	}
	return err
}

func TestFanOutFailures(t *testing.T) {
	boom := errors.New("boom")
	drain := func(r io.Reader) error { _, err := io.Copy(io.Discard, r); return err }
	endless := io.Reader(zeros{})
	if err := layer.FanOut(t.Context(), io.MultiReader(bytes.NewReader(make([]byte, 1<<20)), iotest.ErrReader(boom)), drain, drain); !errors.Is(err, boom) {
		t.Errorf("source: %v", err)
	}
	if err := layer.FanOut(t.Context(), iotest.ErrReader(io.ErrUnexpectedEOF), drain); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a source that ends too early: %v", err)
	}
	if err := layer.FanOut(t.Context(), endless, drain, func(r io.Reader) error { _, _ = io.CopyN(io.Discard, r, 1<<20); return boom }); !errors.Is(err, boom) {
		t.Errorf("sink: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	time.AfterFunc(20*time.Millisecond, func() { cancel(boom) })
	if err := layer.FanOut(ctx, endless, drain); !errors.Is(err, boom) {
		t.Errorf("context: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { return len(p), nil }
