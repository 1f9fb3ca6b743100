//go:build linux

package registry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"dhow/guest/store/image"
	"dhow/internal/errdefs"
)

// accept lists what Manifest understands; docker's first schema is among it so
// that a registry which has nothing else says so, and it can be refused by
// name.
var accept = strings.Join([]string{
	ocispec.MediaTypeImageIndex, image.DockerIndex,
	ocispec.MediaTypeImageManifest, image.DockerManifest,
	image.DockerSchema1Signed + ";q=0.1",
}, ", ")

// Manifest reads a manifest or index by tag or digest. Its descriptor has the
// media type that the content states, whatever the registry said, and the
// digest of the bytes; asked for by digest, bytes that do not have it are
// Invalid.
func (r *Repository) Manifest(ctx context.Context, tagOrDigest string) (raw []byte, desc ocispec.Descriptor, err error) {
	var contentType string
	err = r.c.retry(ctx, "manifest", func() error {
		resp, err := r.get(ctx, "/manifests/"+tagOrDigest, http.Header{"Accept": {accept}}, http.StatusOK)
		if err != nil {
			return manifestUnknown(err)
		}
		contentType, _, _ = strings.Cut(resp.Header.Get("Content-Type"), ";")
		raw, err = r.body(ctx, resp, image.MaxManifest)
		return err
	})
	if err != nil {
		return nil, desc, err
	}
	desc = ocispec.Descriptor{MediaType: image.DetectMediaType(raw), Digest: digest.FromBytes(raw), Size: int64(len(raw))}
	if desc.MediaType == "" {
		desc.MediaType = contentType
	}
	if want, err := digest.Parse(tagOrDigest); err == nil && want != desc.Digest {
		return nil, desc, errdefs.New(errdefs.Invalid, "manifest verification failed for digest %s", want)
	}
	return raw, desc, nil
}

// manifestUnknown gives a bare 404 the meaning that it has for a manifest.
func manifestUnknown(err error) error {
	var s *StatusError
	if errors.As(err, &s) && s.Status == http.StatusNotFound && len(s.Errors) == 0 {
		s.Errors = []APIError{{"MANIFEST_UNKNOWN", "manifest unknown"}}
	}
	return err
}

// body reads a small body to its end, and closes it.
func (r *Repository) body(ctx context.Context, resp *http.Response, limit int64) ([]byte, error) {
	b := newStallReader(resp.Body, r.c.o.StallTimeout)
	defer b.Close()
	raw, err := io.ReadAll(io.LimitReader(b, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", resp.Request.URL.Redacted(), err)
	}
	if int64(len(raw)) > limit {
		return nil, errdefs.New(errdefs.Invalid, "%s is larger than %d bytes", resp.Request.URL.Redacted(), limit)
	}
	return raw, ctx.Err()
}

// BlobBytes reads a whole small blob, and checks its size but not its digest.
func (r *Repository) BlobBytes(ctx context.Context, d ocispec.Descriptor, limit int64) ([]byte, error) {
	if d.Size > limit {
		return nil, errdefs.New(errdefs.Invalid, "blob %s is larger than %d bytes", d.Digest, limit)
	}
	b := r.Blob(ctx, d)
	raw, err := io.ReadAll(b)
	return raw, errors.Join(err, b.Close())
}

// Blob returns a reader of a blob. It connects at the first Read; a connection
// that breaks or stalls is replaced by one that goes on where it ended, until
// GiveUp passes without a byte. It ends with io.EOF after exactly d.Size
// bytes; another length that the registry announces or delivers is an error.
// It ends when ctx does.
func (r *Repository) Blob(ctx context.Context, d ocispec.Descriptor) *Blob {
	return &Blob{r: r, ctx: ctx, d: d, last: time.Now()}
}

// Blob reads one blob; it is for one goroutine.
type Blob struct {
	r        *Repository
	ctx      context.Context // of the one download that this value is
	d        ocispec.Descriptor
	off      int64
	body     *stallReader
	attempts int
	resumed  bool
	noRange  bool
	last     time.Time // of the last byte
}

// Resumed reports whether the bytes come from more than one response.
func (b *Blob) Resumed() bool { return b.resumed }

// Read implements io.Reader.
func (b *Blob) Read(p []byte) (int, error) {
	for {
		if b.off == b.d.Size {
			return 0, io.EOF
		}
		n, err := b.read(p)
		b.off += int64(n)
		if n > 0 {
			b.attempts, b.last = 0, time.Now()
			if err != nil {
				b.drop()
			}
			return n, nil
		}
		if err == nil {
			continue
		}
		b.drop()
		if err == io.EOF {
			err = fmt.Errorf("blob %s ended after %d of %d bytes: %w", b.d.Digest, b.off, b.d.Size, io.ErrUnexpectedEOF)
		}
		if b.ctx.Err() != nil {
			return 0, context.Cause(b.ctx)
		}
		b.attempts++
		wait := backoff(b.attempts, err)
		if !temporary(err) || b.attempts >= maxAttempts || time.Since(b.last)+wait > b.r.c.o.GiveUp {
			return 0, err
		}
		b.r.c.o.Log.Debug("download broke, trying again", "blob", b.d.Digest, "offset", b.off, "attempt", b.attempts, "wait", wait, "error", err)
		if err := sleep(b.ctx, wait); err != nil {
			return 0, err
		}
	}
}

func (b *Blob) read(p []byte) (int, error) {
	if b.body == nil {
		if err := b.open(); err != nil {
			return 0, err
		}
	}
	if left := b.d.Size - b.off; int64(len(p)) > left {
		p = p[:left]
	}
	return b.body.Read(p)
}

func (b *Blob) open() error {
	header := make(http.Header)
	want := []int{http.StatusOK}
	if b.off > 0 {
		b.resumed = true
	}
	if b.off > 0 && !b.noRange {
		// With its end, for some do not know ranges without.
		header.Set("Range", fmt.Sprintf("bytes=%d-%d", b.off, b.d.Size-1))
		want = []int{http.StatusOK, http.StatusPartialContent}
	}
	resp, err := b.r.get(b.ctx, "/blobs/"+b.d.Digest.String(), header, want...)
	var refused *StatusError
	if errors.As(err, &refused) && header.Get("Range") != "" && (refused.Status == 400 || refused.Status == 404 || refused.Status == 416) {
		b.noRange = true // it does not know ranges at all, and says so
		return b.open()
	}
	if err != nil {
		return blobUnknown(err)
	}
	b.body = newStallReader(resp.Body, b.r.c.o.StallTimeout)
	expect := b.d.Size
	if resp.StatusCode == http.StatusPartialContent {
		expect -= b.off
		var start int64
		if _, err := fmt.Sscanf(resp.Header.Get("Content-Range"), "bytes %d-", &start); err != nil || start != b.off {
			return errdefs.New(errdefs.Invalid, "the registry sent the range %q of blob %s, not the one from %d on", resp.Header.Get("Content-Range"), b.d.Digest, b.off)
		}
	}
	if resp.ContentLength >= 0 && resp.ContentLength != expect {
		return errdefs.New(errdefs.Invalid, "unexpected size of blob %s: the registry announces %d bytes, the manifest %d", b.d.Digest, resp.ContentLength, expect)
	}
	if resp.StatusCode == http.StatusOK && b.off > 0 {
		// It does not know ranges: read over what is here already.
		if _, err := io.CopyN(io.Discard, b.body, b.off); err != nil {
			return err
		}
	}
	return nil
}

// blobUnknown gives a bare 404 the meaning that it has for a blob.
func blobUnknown(err error) error {
	var s *StatusError
	if errors.As(err, &s) && s.Status == http.StatusNotFound && len(s.Errors) == 0 {
		s.Errors = []APIError{{"BLOB_UNKNOWN", "unknown blob"}}
	}
	return err
}

func (b *Blob) drop() {
	if b.body != nil {
		b.body.Close()
		b.body = nil
	}
}

// Close ends the download.
func (b *Blob) Close() error {
	b.drop()
	return nil
}

// stallReader reads a body that must not be silent for longer than limit: its
// timer closes the body, which ends the Read that waits.
type stallReader struct {
	body    io.ReadCloser
	limit   time.Duration
	timer   *time.Timer
	stalled atomic.Bool
}

func newStallReader(body io.ReadCloser, limit time.Duration) *stallReader {
	s := &stallReader{body: body, limit: limit}
	s.timer = time.AfterFunc(limit, func() {
		s.stalled.Store(true)
		_ = body.Close()
	})
	return s
}

func (s *stallReader) Read(p []byte) (int, error) {
	s.timer.Reset(s.limit)
	n, err := s.body.Read(p)
	s.timer.Stop()
	if err != nil && err != io.EOF && s.stalled.Load() {
		err = fmt.Errorf("no data for %s: %w", s.limit, errStalled)
	}
	return n, err
}

func (s *stallReader) Close() {
	s.timer.Stop()
	_ = s.body.Close()
}
