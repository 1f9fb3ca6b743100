//go:build linux

package layer_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/klauspost/compress/gzip"

	"dhow/guest/store/layer"
	. "dhow/guest/store/storetest"
	"dhow/internal/testkit"
)

// syntheticLayer is a layer of about 100 MB, in files as a distribution has
// them: many small ones, some large, in directories six deep.
var syntheticLayer = sync.OnceValue(func() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	var files []File
	total := 0
	for i := 0; total < 100<<20; i++ {
		d := fmt.Sprintf("usr/share/p%d/q%d/r%d/", i%7, i%50, i%200)
		if i < 1400 {
			files = append(files, File{Name: d})
		}
		size := 200 + r.IntN(8_000)
		if i%40 == 0 {
			size = 200_000 + r.IntN(400_000)
		}
		data := make([]byte, size)
		for j := range data { // compresses to about a third
			data[j] = "the quick brown fox jumps over a lazy dog"[r.IntN(41)]
			if j%3 == 0 && j > 64 {
				data[j] = data[j-64]
			}
		}
		files = append(files, File{Name: fmt.Sprintf("%sf%d", d, i), Data: string(data), UID: i % 3 * 100})
		total += size
	}
	return Gzip(Tar(files...))
})

// BenchmarkUnpack compares Unpack, with its hash and all its care, with the
// floor: gunzip and untar of the same bytes by the plainest code, in one run,
// taking turns.
func BenchmarkUnpack(b *testing.B) {
	testkit.Kernel(b)
	blob := syntheticLayer()
	var ours, floor time.Duration
	b.SetBytes(int64(len(blob)))
	for i := range b.N {
		for j := range 2 {
			dir := filepath.Join(b.TempDir(), "fs")
			if err := os.Mkdir(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			began := time.Now()
			if (i+j)%2 == 0 {
				u, err := layer.Unpack(b.Context(), dir, bytes.NewReader(blob), layer.Options{Lower: &layer.Lower{}})
				if err == nil {
					err = u.Tree.Finish(b.Context(), &layer.Lower{})
				}
				if err != nil {
					b.Fatal(err)
				}
				ours += time.Since(began)
			} else {
				if err := untar(dir, blob); err != nil {
					b.Fatal(err)
				}
				floor += time.Since(began)
			}
			b.StopTimer()
			if err := os.RemoveAll(dir); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	}
	b.ReportMetric(ours.Seconds()/float64(b.N), "s/unpack")
	b.ReportMetric(floor.Seconds()/float64(b.N), "s/floor")
	b.ReportMetric(ours.Seconds()/floor.Seconds(), "ratio")
}

func untar(dir string, blob []byte) error {
	z, err := gzip.NewReader(bytes.NewReader(blob))
	if err != nil {
		return err
	}
	for tr := tar.NewReader(z); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		name := filepath.Join(dir, h.Name)
		if h.Typeflag == tar.TypeDir {
			if err := os.MkdirAll(name, 0o755); err != nil {
				return err
			}
			continue
		}
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, os.FileMode(h.Mode))
		if err != nil {
			return err
		}
		if _, err := io.Copy(f, tr); err != nil {
			return err
		}
		if err := f.Close(); err != nil {
			return err
		}
		if err := os.Lchown(name, h.Uid, h.Gid); err != nil {
			return err
		}
		if err := os.Chtimes(name, h.ModTime, h.ModTime); err != nil {
			return err
		}
	}
}
