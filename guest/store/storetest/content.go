//go:build linux

package storetest

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store/content"
	"dhow/internal/errdefs"
)

// Content is the conformance suite of content.Store. open returns an empty
// store.
func Content(t *testing.T, open func(*testing.T) content.Store) {
	for name, fn := range map[string]func(*testing.T, content.Store){
		"a committed blob can be read":                  contentRoundTrip,
		"nothing is visible before the commit":          contentInvisible,
		"what does not match is refused":                contentMismatch,
		"a closed writer is resumed":                    contentResume,
		"one writer for a reference":                    contentOneWriter,
		"a size that was announced bounds the writer":   contentBounded,
		"a blob that exists":                            contentExists,
		"an open reader survives Delete":                contentDelete,
		"Walk sees each blob once":                      contentWalk,
		"digests that are no digests":                   contentBadDigest,
		"empty blob":                                    contentEmpty,
		"Abort and Ingests":                             contentAbort,
		"many writers of the same bytes":                contentParallel,
		"a canceled commit can be done again":           contentCanceled,
		"Reset starts over":                             contentReset,
		"references of any bytes do not meet":           contentRefs,
		"resume with another expectation starts over":   contentOtherExpectation,
		"an ingest longer than the blob is not resumed": contentTooLong,
	} {
		t.Run(name, func(t *testing.T) { fn(t, open(t)) })
	}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}

// PutBlob stores a blob and returns its descriptor.
func PutBlob(t testing.TB, s content.Store, raw []byte) ocispec.Descriptor {
	t.Helper()
	d := ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	w := writer(t, s, "put-"+string(d.Digest), d)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Commit(context.Background(), d.Size, d.Digest); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return d
}

func writer(t testing.TB, s content.Store, ref string, d ocispec.Descriptor) content.Writer {
	t.Helper()
	w, err := s.Writer(context.Background(), ref, d)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func write(t testing.TB, w content.Writer, raw []byte) {
	t.Helper()
	if n, err := w.Write(raw); n != len(raw) || err != nil {
		t.Fatalf("Write = %d, %v; want %d", n, err, len(raw))
	}
}

func read(t testing.TB, s content.Store, d digest.Digest) []byte {
	t.Helper()
	r, err := s.Open(context.Background(), d)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err = errors.Join(err, r.Close()); err != nil {
		t.Fatal(err)
	}
	return raw
}

func wantClass(t testing.TB, what string, err error, c errdefs.Class) {
	t.Helper()
	if !errdefs.Is(err, c) {
		t.Errorf("%s: err = %v, want class %q", what, err, c)
	}
}

func contentRoundTrip(t *testing.T, s content.Store) {
	raw := random(3 << 20)
	w := writer(t, s, "r", ocispec.Descriptor{})
	for b := range slices.Chunk(raw, 100_001) {
		write(t, w, b)
	}
	if w.Digest() != digest.FromBytes(raw) || w.Offset() != int64(len(raw)) {
		t.Errorf("digest %s, offset %d", w.Digest(), w.Offset())
	}
	if err := w.Commit(t.Context(), -1, "", content.Deferred); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), w.Close(), s.Sync(t.Context())); err != nil {
		t.Fatal(err)
	}
	d := digest.FromBytes(raw)
	if !bytes.Equal(read(t, s, d), raw) {
		t.Error("other bytes came back")
	}
	i, err := s.Info(t.Context(), d)
	if err != nil || i.Digest != d || i.Size != int64(len(raw)) || i.CreatedAt.IsZero() {
		t.Errorf("Info = %+v, %v", i, err)
	}
	r, err := s.Open(t.Context(), d)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = r.Close() }()
	var b [10]byte
	if n, err := r.ReadAt(b[:], r.Size()-5); n != 5 || err != io.EOF {
		t.Errorf("ReadAt over the end = %d, %v; want 5, EOF", n, err)
	}
}

func contentInvisible(t *testing.T, s content.Store) {
	raw := random(1000)
	w := writer(t, s, "r", ocispec.Descriptor{Digest: digest.FromBytes(raw)})
	write(t, w, raw)
	_, err := s.Info(t.Context(), digest.FromBytes(raw))
	wantClass(t, "Info before commit", err, errdefs.NotFound)
	_, err = s.Open(t.Context(), digest.FromBytes(raw))
	wantClass(t, "Open before commit", err, errdefs.NotFound)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = s.Info(t.Context(), digest.FromBytes(raw))
	wantClass(t, "Info after close", err, errdefs.NotFound)
}

func contentMismatch(t *testing.T, s content.Store) {
	raw := random(1000)
	for what, commit := range map[string]func(content.Writer) error{
		"size":   func(w content.Writer) error { return w.Commit(t.Context(), 999, digest.FromBytes(raw)) },
		"digest": func(w content.Writer) error { return w.Commit(t.Context(), 1000, digest.FromBytes(raw[1:])) },
	} {
		w := writer(t, s, "r", ocispec.Descriptor{})
		write(t, w, raw)
		err := commit(w)
		wantClass(t, what, err, errdefs.Invalid)
		if !errors.Is(err, content.ErrMismatch) {
			t.Errorf("%s: err = %v, want ErrMismatch in it", what, err)
		}
		if w.Offset() != 0 {
			t.Errorf("%s: the bad bytes are still there", what)
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	_, err := s.Info(t.Context(), digest.FromBytes(raw))
	wantClass(t, "Info", err, errdefs.NotFound)
	_, err = s.Info(t.Context(), digest.FromBytes(raw[1:]))
	wantClass(t, "Info of the promised digest", err, errdefs.NotFound)
}

func contentResume(t *testing.T, s content.Store) {
	raw := random(300_000)
	d := ocispec.Descriptor{Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	for part := range slices.Chunk(raw, 70_000) {
		w := writer(t, s, "r", d)
		write(t, w, part)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w := writer(t, s, "r", d)
	if w.Offset() != d.Size || w.Digest() != d.Digest {
		t.Fatalf("resumed at %d with %s", w.Offset(), w.Digest())
	}
	if err := errors.Join(w.Commit(t.Context(), d.Size, d.Digest), w.Close()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(read(t, s, d.Digest), raw) {
		t.Error("other bytes came back")
	}
	w = writer(t, s, "r", ocispec.Descriptor{})
	if w.Offset() != 0 {
		t.Error("a committed ingest is resumed")
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func contentOneWriter(t *testing.T, s content.Store) {
	w := writer(t, s, "r", ocispec.Descriptor{})
	_, err := s.Writer(t.Context(), "r", ocispec.Descriptor{})
	wantClass(t, "second writer", err, errdefs.Conflict)
	if errors.Is(err, content.ErrExists) {
		t.Error("a second writer is not a blob that exists")
	}
	wantClass(t, "Abort under a writer", s.Abort(t.Context(), "r"), errdefs.Conflict)
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = writer(t, s, "r", ocispec.Descriptor{})
	write(t, w, []byte("x"))
	if err := errors.Join(w.Commit(t.Context(), 1, ""), w.Close()); err != nil {
		t.Fatal(err)
	}
	if err := writer(t, s, "r", ocispec.Descriptor{}).Close(); err != nil {
		t.Error(err)
	}
	_, err = s.Writer(t.Context(), "", ocispec.Descriptor{})
	wantClass(t, "no reference", err, errdefs.Invalid)
}

func contentBounded(t *testing.T, s content.Store) {
	w := writer(t, s, "r", ocispec.Descriptor{Size: 10})
	write(t, w, random(8))
	n, err := w.Write(random(3))
	wantClass(t, "Write over the size", err, errdefs.Invalid)
	if n != 0 || w.Offset() != 8 {
		t.Errorf("wrote %d bytes, offset %d", n, w.Offset())
	}
	write(t, w, random(2))
	if err := errors.Join(w.Commit(t.Context(), 10, ""), w.Close()); err != nil {
		t.Error(err)
	}
}

func contentExists(t *testing.T, s content.Store) {
	raw := random(10)
	d := PutBlob(t, s, raw)
	_, err := s.Writer(t.Context(), "again", d)
	wantClass(t, "Writer", err, errdefs.Conflict)
	if !errors.Is(err, content.ErrExists) {
		t.Errorf("err = %v, want ErrExists in it", err)
	}
	// Somebody who could not know it.
	w := writer(t, s, "unknown", ocispec.Descriptor{})
	write(t, w, raw)
	if err := errors.Join(w.Commit(t.Context(), d.Size, d.Digest), w.Close()); err != nil {
		t.Errorf("commit of a blob that exists: %v", err)
	}
	if !bytes.Equal(read(t, s, d.Digest), raw) {
		t.Error("other bytes came back")
	}
}

func contentDelete(t *testing.T, s content.Store) {
	raw := random(100)
	d := PutBlob(t, s, raw)
	r, err := s.Open(t.Context(), d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), d.Digest); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(io.NewSectionReader(r, 0, r.Size()))
	if err != nil || !bytes.Equal(got, raw) {
		t.Errorf("read after Delete: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
	_, err = s.Open(t.Context(), d.Digest)
	wantClass(t, "Open", err, errdefs.NotFound)
	wantClass(t, "second Delete", s.Delete(t.Context(), d.Digest), errdefs.NotFound)
	PutBlob(t, s, raw)
}

func contentWalk(t *testing.T, s content.Store) {
	var want []digest.Digest
	for i := range 20 {
		want = append(want, PutBlob(t, s, random(i)).Digest)
	}
	slices.Sort(want)
	var got []digest.Digest
	if err := s.Walk(t.Context(), func(i content.Info) error { got = append(got, i.Digest); return nil }); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		t.Errorf("Walk = %v, want %v", got, want)
	}
	boom := errors.New("boom")
	n := 0
	err := s.Walk(t.Context(), func(content.Info) error { n++; return boom })
	if !errors.Is(err, boom) || n != 1 {
		t.Errorf("Walk with a failing function = %v after %d calls", err, n)
	}
	// A garbage collector deletes as it walks.
	if err := s.Walk(t.Context(), func(i content.Info) error { return s.Delete(t.Context(), i.Digest) }); err != nil {
		t.Error(err)
	}
}

func contentBadDigest(t *testing.T, s content.Store) {
	for _, d := range []digest.Digest{"", "sha256:", "sha256:../../etc/passwd", "sha256:ABC", digest.SHA512.FromString("x"),
		"sha256:" + digest.Digest(bytes.Repeat([]byte("0"), 63)), "md5:d41d8cd98f00b204e9800998ecf8427e"} {
		_, err := s.Info(t.Context(), d)
		wantClass(t, "Info "+string(d), err, errdefs.Invalid)
		_, err = s.Open(t.Context(), d)
		wantClass(t, "Open "+string(d), err, errdefs.Invalid)
		wantClass(t, "Delete "+string(d), s.Delete(t.Context(), d), errdefs.Invalid)
		if d != "" {
			_, err = s.Writer(t.Context(), "r", ocispec.Descriptor{Digest: d})
			wantClass(t, "Writer "+string(d), err, errdefs.Invalid)
		}
	}
}

func contentEmpty(t *testing.T, s content.Store) {
	d := PutBlob(t, s, nil)
	if got := read(t, s, d.Digest); len(got) != 0 {
		t.Errorf("read %d bytes", len(got))
	}
}

func contentAbort(t *testing.T, s content.Store) {
	w := writer(t, s, "a/../b", ocispec.Descriptor{Size: 100})
	write(t, w, random(10))
	var got []content.Ingest
	list := func() {
		got = nil
		if err := s.Ingests(t.Context(), func(i content.Ingest) error { got = append(got, i); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if list(); len(got) != 1 || got[0].Ref != "a/../b" || got[0].Offset != 10 || got[0].Expected.Size != 100 {
		t.Errorf("Ingests = %+v", got)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(s.Abort(t.Context(), "a/../b"), s.Abort(t.Context(), "never there")); err != nil {
		t.Fatal(err)
	}
	if list(); len(got) != 0 {
		t.Errorf("after Abort: %+v", got)
	}
	w = writer(t, s, "a/../b", ocispec.Descriptor{})
	if w.Offset() != 0 {
		t.Error("an aborted ingest is resumed")
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

func contentParallel(t *testing.T, s content.Store) {
	raw := random(200_000)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			w, err := s.Writer(context.Background(), fmt.Sprint(i), ocispec.Descriptor{})
			if err == nil {
				_, err = w.Write(raw)
			}
			if err == nil {
				err = errors.Join(w.Commit(context.Background(), int64(len(raw)), digest.FromBytes(raw)), w.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if !bytes.Equal(read(t, s, digest.FromBytes(raw)), raw) {
		t.Error("other bytes came back")
	}
}

func contentCanceled(t *testing.T, s content.Store) {
	raw := random(10)
	w := writer(t, s, "r", ocispec.Descriptor{})
	write(t, w, raw)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Commit(ctx, 10, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("Commit = %v", err)
	}
	if err := errors.Join(w.Commit(t.Context(), 10, digest.FromBytes(raw)), w.Close()); err != nil {
		t.Error(err)
	}
}

func contentReset(t *testing.T, s content.Store) {
	raw := random(10)
	w := writer(t, s, "r", ocispec.Descriptor{Size: 10})
	write(t, w, random(9))
	if err := w.Reset(); err != nil {
		t.Fatal(err)
	}
	write(t, w, raw)
	if err := errors.Join(w.Commit(t.Context(), 10, digest.FromBytes(raw)), w.Close()); err != nil {
		t.Error(err)
	}
}

func contentRefs(t *testing.T, s content.Store) {
	var open []content.Writer
	for _, ref := range []string{"a", "A", "a/b", "a\x00b", "../a", ".", "..", string(random(5000))} {
		w := writer(t, s, ref, ocispec.Descriptor{})
		if w.Offset() != 0 {
			t.Errorf("%q met another", ref)
		}
		write(t, w, random(3))
		open = append(open, w)
	}
	for _, w := range open {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
}

func contentOtherExpectation(t *testing.T, s content.Store) {
	one, two := random(10), random(10)
	w := writer(t, s, "r", ocispec.Descriptor{Digest: digest.FromBytes(one)})
	write(t, w, one[:5])
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	w = writer(t, s, "r", ocispec.Descriptor{Digest: digest.FromBytes(two)})
	if w.Offset() != 0 {
		t.Fatal("bytes of one blob became the beginning of another")
	}
	write(t, w, two)
	if err := errors.Join(w.Commit(t.Context(), 10, digest.FromBytes(two)), w.Close()); err != nil {
		t.Error(err)
	}
}

func contentTooLong(t *testing.T, s content.Store) {
	raw := random(10)
	d := ocispec.Descriptor{Digest: digest.FromBytes(raw)}
	w := writer(t, s, "r", d)
	write(t, w, random(20))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	d.Size = 10
	w = writer(t, s, "r", d)
	if w.Offset() != 0 {
		t.Fatalf("resumed at %d", w.Offset())
	}
	write(t, w, raw)
	if err := errors.Join(w.Commit(t.Context(), 10, d.Digest), w.Close()); err != nil {
		t.Error(err)
	}
}
