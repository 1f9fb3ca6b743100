//go:build linux

package layer

import (
	"bufio"
	"bytes"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"dhow/internal/errdefs"
)

// Compression names how a blob is compressed.
type Compression string

// The compressions that Decompress knows.
const (
	Plain Compression = ""
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
)

// magics are the first bytes of the formats. Those with no reader are refused
// by name.
var magics = []struct {
	bytes  []byte
	format Compression
}{
	{[]byte{0x1f, 0x8b}, Gzip},
	{[]byte{0x28, 0xb5, 0x2f, 0xfd}, Zstd},
	{[]byte{0xfd, '7', 'z', 'X', 'Z', 0}, "xz"},
	{[]byte("BZh"), "bzip2"},
}

// maxWindow bounds the memory of one zstd stream, in bytes; it is what the zstd
// tool accepts without asking.
const maxWindow = 128 << 20

// Decompress returns the plain stream of r, which is told by its first bytes,
// whatever a media type says. A zstd stream that begins with a skippable frame
// is recognized as well. Errors of r come through as they are; those of the
// format are Invalid.
func Decompress(r io.Reader) (io.ReadCloser, Compression, error) {
	src := &source{r: r}
	br := bufio.NewReaderSize(src, 64<<10)
	head, err := br.Peek(10)
	if err != nil && err != io.EOF {
		return nil, Plain, err
	}
	format := Plain
	for _, m := range magics {
		if bytes.HasPrefix(head, m.bytes) {
			format = m.format
			break
		}
	}
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}) {
		format = Zstd
	}
	switch format {
	case Plain:
		return io.NopCloser(br), Plain, nil
	case Gzip:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, format, src.explain(err)
		}
		return &decompressor{z, z.Close, src}, format, nil
	case Zstd:
		z, err := zstd.NewReader(br, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, format, src.explain(err)
		}
		return &decompressor{z, func() error { z.Close(); return nil }, src}, format, nil
	}
	return nil, format, errdefs.New(errdefs.Unimplemented, "%s-compressed layers and archives are not supported", format)
}

// source remembers the error of the compressed stream, to tell it from one of
// the format.
type source struct {
	r   io.Reader
	err error
}

func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

func (s *source) explain(err error) error {
	if s.err != nil {
		return s.err
	}
	return errdefs.Wrap(errdefs.Invalid, err, "invalid compressed data")
}

type decompressor struct {
	io.Reader
	close func() error
	src   *source
}

func (d *decompressor) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = d.src.explain(err)
	}
	return n, err
}

func (d *decompressor) Close() error { return d.close() }
