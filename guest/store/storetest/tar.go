//go:build linux

package storetest

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Time is the modification time of entries that set none.
var Time = time.Unix(1_600_000_000, 123_456_789)

// File is one entry of a layer; its zero fields have sensible values.
type File struct {
	Name  string // a trailing slash makes a directory
	Type  byte   // else by the fields below
	Data  string
	Link  string // target; of a symbolic link unless Type is tar.TypeLink
	Mode  int64  // 0644, directories 0755
	UID   int
	GID   int
	Time  time.Time
	Xattr map[string]string
	Major int64
	Minor int64
}

// Tar writes entries as a tar stream.
func Tar(files ...File) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		h := f.header()
		if err := w.WriteHeader(h); err != nil {
			panic(fmt.Sprintf("tar entry %q: %v", f.Name, err))
		}
		if h.Size > 0 {
			if _, err := io.WriteString(w, f.Data); err != nil {
				panic(fmt.Sprintf("tar entry %q: %v", f.Name, err))
			}
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func (f File) header() *tar.Header {
	h := &tar.Header{
		Name: f.Name, Typeflag: f.Type, Linkname: f.Link, Mode: f.Mode, Uid: f.UID, Gid: f.GID,
		ModTime: f.Time, Devmajor: f.Major, Devminor: f.Minor, Format: tar.FormatPAX,
	}
	if h.Typeflag == 0 {
		switch {
		case len(f.Name) > 0 && f.Name[len(f.Name)-1] == '/':
			h.Typeflag = tar.TypeDir
		case f.Link != "":
			h.Typeflag = tar.TypeSymlink
		default:
			h.Typeflag = tar.TypeReg
		}
	}
	if h.Typeflag == tar.TypeReg {
		h.Size = int64(len(f.Data))
	}
	if h.Mode == 0 {
		h.Mode = 0o644
		if h.Typeflag == tar.TypeDir {
			h.Mode = 0o755
		}
	}
	if h.ModTime.IsZero() {
		h.ModTime = Time
	}
	for k, v := range f.Xattr {
		if h.PAXRecords == nil {
			h.PAXRecords = make(map[string]string)
		}
		h.PAXRecords["SCHILY.xattr."+k] = v
	}
	return h
}

// Gzip compresses b.
func Gzip(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err)
	}
	return out.Bytes()
}

// Zstd compresses b.
func Zstd(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(b, nil)
}

// Decompressed returns the uncompressed stream of a blob.
func Decompressed(t testing.TB, blob []byte) io.Reader {
	t.Helper()
	switch {
	case bytes.HasPrefix(blob, []byte{0x1f, 0x8b}):
		r, err := gzip.NewReader(bytes.NewReader(blob))
		if err != nil {
			t.Fatal(err)
		}
		return r
	case bytes.HasPrefix(blob, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		r, err := zstd.NewReader(bytes.NewReader(blob))
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	return bytes.NewReader(blob)
}
