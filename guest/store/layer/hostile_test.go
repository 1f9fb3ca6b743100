//go:build linux

package layer_test

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"dhow/guest/store/layer"
	. "dhow/guest/store/storetest"
	"dhow/internal/errdefs"
	"dhow/internal/testkit"
)

// cage is a directory to unpack into, beside files that must not change.
type cage struct {
	t       testing.TB
	root    string
	dir     string
	outside map[string]Entry
}

func newCage(t testing.TB) *cage {
	t.Helper()
	testkit.Kernel(t)
	c := &cage{t: t, root: t.TempDir()}
	for _, d := range []string{"in/snapshot/fs", "etc"} {
		if err := os.MkdirAll(filepath.Join(c.root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{"etc/passwd", "in/secret", "victim"} {
		if err := os.WriteFile(filepath.Join(c.root, f), []byte("precious"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.dir = filepath.Join(c.root, "in/snapshot/fs")
	c.outside = c.look()
	return c
}

// look describes all but the inside.
func (c *cage) look() map[string]Entry {
	tree, err := ReadTree(c.root)
	if err != nil {
		c.t.Fatal(err)
	}
	for p := range tree {
		if strings.HasPrefix(p, "in/snapshot/fs") {
			delete(tree, p)
		}
	}
	return tree
}

// check fails the test if anything outside has changed, or has a name inside.
func (c *cage) check() {
	c.t.Helper()
	if d := DiffTrees(c.look(), c.outside); len(d) > 0 {
		c.t.Fatalf("changed outside:\n%s", strings.Join(d, "\n"))
	}
	for _, f := range []string{"etc/passwd", "in/secret", "victim"} {
		var st unix.Stat_t
		if err := unix.Lstat(filepath.Join(c.root, f), &st); err != nil || st.Nlink != 1 {
			c.t.Fatalf("%s has %d names, %v", f, st.Nlink, err)
		}
	}
}

func (c *cage) apply(stream []byte, o layer.Options) error {
	tree, err := layer.Apply(context.Background(), c.dir, bytes.NewReader(stream), o)
	if err != nil {
		return err
	}
	lower := o.Lower
	if lower == nil {
		lower = &layer.Lower{}
	}
	return tree.Finish(context.Background(), lower)
}

var base = layer.Options{Lower: &layer.Lower{}}

func TestNothingEscapes(t *testing.T) {
	up := strings.Repeat("../", 12)
	for what, c := range map[string]struct {
		files  []File
		refuse bool
	}{
		"dot dot":                     {[]File{{Name: "../../victim", Data: "x"}}, true},
		"dot dot inside":              {[]File{{Name: "a/../../victim", Data: "x"}}, true},
		"absolute":                    {[]File{{Name: "/etc/passwd", Data: "x"}}, false},
		"absolute dot dot":            {[]File{{Name: "/../../../etc/passwd", Data: "x"}}, true},
		"link up, then through it":    {[]File{{Name: "l", Link: up + "etc"}, {Name: "l/passwd", Data: "x"}}, false},
		"absolute link, then through": {[]File{{Name: "l", Link: "/etc"}, {Name: "l/passwd", Data: "x"}}, false},
		"link to itself":              {[]File{{Name: "l", Link: "l"}, {Name: "l/x"}}, true},
		"links in a ring":             {[]File{{Name: "a", Link: "b"}, {Name: "b", Link: "a"}, {Name: "a/x"}}, true},
		"link over a link":            {[]File{{Name: "a", Link: "../.."}, {Name: "b", Link: "a/../.."}, {Name: "b/victim", Data: "x"}}, false},
		"file over a link":            {[]File{{Name: "l", Link: "../../../victim"}, {Name: "l", Data: "x"}}, false},
		"directory over a link":       {[]File{{Name: "l", Link: "../../.."}, {Name: "l/"}, {Name: "l/victim", Data: "x"}}, false},
		"device over a link":          {[]File{{Name: "l", Link: "../../../victim"}, {Name: "l", Type: tar.TypeFifo}}, false},
		"metadata of a link":          {[]File{{Name: "l", Link: "../../../victim", Mode: 0o777, UID: 7, Xattr: map[string]string{"user.x": "y", "trusted.x": "y"}}}, false},
		"hard link up":                {[]File{{Name: "h", Link: "../../victim", Type: tar.TypeLink}}, true},
		"hard link, absolute":         {[]File{{Name: "h", Link: "/etc/passwd", Type: tar.TypeLink}}, true},
		"hard link through a link":    {[]File{{Name: "l", Link: "../../.."}, {Name: "h", Link: "l/victim", Type: tar.TypeLink}}, true},
		"hard link to a link":         {[]File{{Name: "l", Link: "../../../victim"}, {Name: "h", Link: "l", Type: tar.TypeLink}, {Name: "h", Data: "x"}}, false},
		"hard link to itself":         {[]File{{Name: "h", Data: "x"}, {Name: "h", Link: "h", Type: tar.TypeLink}}, true},
		"hard link to a directory":    {[]File{{Name: "d/"}, {Name: "h", Link: "d", Type: tar.TypeLink}}, true},
		"hard link to a whiteout":     {[]File{{Name: ".wh.x"}, {Name: "h", Link: "x", Type: tar.TypeLink}}, true},
		"whiteout up":                 {[]File{{Name: "../../.wh.victim"}}, true},
		"whiteout through a link":     {[]File{{Name: "l", Link: up}, {Name: "l/.wh.victim"}}, false},
		"whiteout of dot dot":         {[]File{{Name: "d/.wh..."}}, true},
		"whiteout of dot":             {[]File{{Name: "d/.wh.."}}, true},
		"whiteout of nothing":         {[]File{{Name: "d/.wh."}}, true},
		"opaque through a link":       {[]File{{Name: "l", Link: "../../.."}, {Name: "l/.wh..wh..opq"}}, false},
		"a whiteout's device":         {[]File{{Name: "w", Type: tar.TypeChar}}, true},
		"overlay's attributes":        {[]File{{Name: "d/", Xattr: map[string]string{"trusted.overlay.opaque": "y", "trusted.overlay.redirect": "/etc"}}}, false},
		"a device beyond all numbers": {[]File{{Name: "d", Type: tar.TypeBlock, Major: 1 << 20}}, true},
		"below a file":                {[]File{{Name: "f"}, {Name: "f/x"}}, true},
		"a name that is too long":     {[]File{{Name: strings.Repeat("n", 256)}}, true},
		"a path that is too long":     {[]File{{Name: strings.Repeat("n/", 2048) + "x"}}, true},
		"the root is a file":          {[]File{{Name: ".", Data: "x"}}, true},
		"the root is a link":          {[]File{{Name: "/", Type: tar.TypeSymlink, Link: "/etc"}}, true},
		"an owner out of range":       {[]File{{Name: "f", UID: 1 << 32}}, true},
		"an unknown type":             {[]File{{Name: "f", Type: 'Z'}}, true},
		"a link without a target":     {[]File{{Name: "l", Type: tar.TypeSymlink}}, true},
	} {
		t.Run(what, func(t *testing.T) {
			c2 := newCage(t)
			err := c2.apply(Tar(c.files...), base)
			c2.check()
			switch {
			case c.refuse && !errdefs.Is(err, errdefs.Invalid):
				t.Errorf("err = %v, want Invalid", err)
			case !c.refuse && err != nil:
				t.Errorf("err = %v", err)
			}
		})
	}
}

func TestOverlaysAttributesAreNotTaken(t *testing.T) {
	c := newCage(t)
	if err := c.apply(Tar(File{Name: "d/", Xattr: map[string]string{"trusted.overlay.opaque": "y", "user.kept": "1"}}), base); err != nil {
		t.Fatal(err)
	}
	if n, err := unix.Lgetxattr(filepath.Join(c.dir, "d"), "trusted.overlay.opaque", make([]byte, 10)); err == nil {
		t.Errorf("the attribute was set, %d bytes", n)
	}
	if _, err := unix.Lgetxattr(filepath.Join(c.dir, "d"), "user.kept", make([]byte, 10)); err != nil {
		t.Error(err)
	}
}

func TestLimits(t *testing.T) {
	big := Tar(File{Name: "a", Data: strings.Repeat("x", 600)}, File{Name: "b", Data: strings.Repeat("x", 600)})
	var sparse bytes.Buffer // 8 TiB, as GNU tar writes it
	h := make([]byte, 512)
	copy(h, "hole")
	copy(h[100:], "0000644\x000000000\x000000000\x00")
	copy(h[124:], "00000000000\x0000000000000\x00        S")
	copy(h[257:], "ustar  \x00")
	copy(h[386:], "\x80\x00\x00\x00\x00\x00\x00\x00\x08\x00\x00\x00")
	copy(h[386:], fmt.Sprintf("%011o\x00%011o\x00", 0, 0))
	copy(h[483:], []byte{0x80, 0, 0, 0, 0, 0, 0x08, 0, 0, 0, 0, 0})
	sum := 0
	for _, b := range h {
		sum += int(b)
	}
	copy(h[148:], fmt.Sprintf("%06o\x00 ", sum))
	sparse.Write(h)
	sparse.Write(make([]byte, 1024))
	little := layer.Limits{Memory: 20_000}
	attr := func(name string, n int) []byte {
		return Tar(File{Name: "d/", Xattr: map[string]string{"user." + name: strings.Repeat("v", n)}})
	}
	few, many := map[string]string{}, map[string]string{}
	for i := range 100 {
		many[fmt.Sprintf("user.%d", i)] = strings.Repeat("v", 1000)
	}
	few["user.a"] = strings.Repeat("v", 1000)
	times := func(n int, f func(i int) File) []byte {
		files := make([]File, n)
		for i := range files {
			files[i] = f(i)
		}
		return Tar(files...)
	}
	half := strings.Repeat("d/", 30)
	for what, c := range map[string]struct {
		stream []byte
		limits layer.Limits
		ok     bool
	}{
		"bytes":                       {big, layer.Limits{Entries: 10, Bytes: 1000, Path: 100}, false},
		"enough bytes":                {big, layer.Limits{Entries: 10, Bytes: 1 << 20, Path: 100}, true},
		"entries":                     {big, layer.Limits{Entries: 1, Bytes: 1 << 20, Path: 100}, false},
		"path":                        {Tar(File{Name: strings.Repeat("a/", 60) + "b"}), layer.Limits{Entries: 10, Bytes: 1 << 20, Path: 100}, false},
		"a hole":                      {sparse.Bytes(), layer.Limits{}, false},
		"attribute's name":            {attr(strings.Repeat("n", 251), 1), layer.Limits{}, false},
		"attribute's value":           {attr("n", 64<<10+1), layer.Limits{}, false},
		"attributes":                  {Tar(File{Name: "d/", Xattr: many}), layer.Limits{}, false},
		"attributes of a file":        {Tar(File{Name: "f", Xattr: many}), layer.Limits{}, false},
		"memory: few directories":     {times(30, func(i int) File { return File{Name: fmt.Sprintf("d%d/", i)} }), little, true},
		"memory: directories":         {times(60, func(i int) File { return File{Name: fmt.Sprintf("d%d/", i)} }), little, false},
		"memory: implied directories": {times(60, func(i int) File { return File{Name: fmt.Sprintf("d%d/f", i)} }), little, false},
		"memory: long paths": {times(15, func(i int) File {
			return File{Name: fmt.Sprintf("%s%d/", strings.Repeat("n", 250)+"/", i) + strings.Repeat("m", 250) + "/"}
		}), little, false},
		"memory: whiteouts":            {times(300, func(i int) File { return File{Name: fmt.Sprintf(".wh.d%d", i)} }), little, false},
		"memory: attributes":           {times(20, func(i int) File { return File{Name: fmt.Sprintf("d%d/", i), Xattr: few} }), little, false},
		"memory: attributes again":     {times(60, func(int) File { return File{Name: "d/", Xattr: few} }), little, true},
		"memory: attributes of a file": {times(60, func(i int) File { return File{Name: fmt.Sprintf("f%d", i), Xattr: few} }), little, true},
		"path through links":           {Tar(File{Name: half}, File{Name: "l", Link: half}, File{Name: "l/" + half}), layer.Limits{Path: 100}, false},
		"what follows":                 {append(Tar(), make([]byte, 1<<20)...), layer.Limits{Entries: 1, Bytes: 1000, Path: 100}, false},
	} {
		t.Run(what, func(t *testing.T) {
			c2 := newCage(t)
			err := c2.apply(c.stream, layer.Options{Lower: &layer.Lower{}, Limits: c.limits})
			if c.ok && err != nil || !c.ok && !errdefs.Is(err, errdefs.Invalid) {
				t.Errorf("err = %v", err)
			}
			c2.check()
		})
	}
}

// heap returns the bytes of memory in use.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestMemory compares what is charged with what is taken.
func TestMemory(t *testing.T) {
	const n = 1000
	for what, name := range map[string]string{
		"directories": "directory-%d/", "implied": "directory-%d/f", "whiteouts": ".wh.d%d",
		"a whiteout each": "directory-%d/.wh.x", "deep": strings.Repeat("n/", 30) + "%d/",
	} {
		t.Run(what, func(t *testing.T) {
			c := newCage(t)
			heap() // what earlier tests left in pools
			files := make([]File, n)
			for i := range files {
				files[i].Name = fmt.Sprintf(name, i)
				if what == "directories" {
					files[i].Xattr = map[string]string{"user.a": strings.Repeat("v", i%300), "user.b": "1"}
				}
			}
			var charged, most int64
			stream := bytes.NewReader(Tar(files...))
			before := heap()
			var during int64
			// Reserve is asked while all is kept; sealed directories let their
			// attributes go.
			o := layer.Options{Lower: &layer.Lower{}, Reserve: func(n int64) error {
				if charged += n; charged-most > 50_000 {
					most, during = charged, max(during, heap()-before-charged)
				}
				return nil
			}}
			tree, err := layer.Apply(t.Context(), c.dir, stream, o)
			if err != nil {
				t.Fatal(err)
			}
			after := heap() - before
			runtime.KeepAlive(tree)
			runtime.KeepAlive(files)
			runtime.KeepAlive(stream)
			if most == 0 || after == 0 {
				t.Fatal("nothing was measured")
			}
			// The tar reader and the copy buffer are not the layer's.
			if slack := int64(300_000); after > charged+slack || during > slack {
				t.Errorf("charged %d bytes, kept %d; at most %d too many on the way", charged, after, during)
			}
			if after < charged/5 {
				t.Errorf("charged %d bytes, kept %d only", charged, after)
			}
		})
	}
}

// TestHeadersAreNotKept gives every entry a header of almost 1 MiB, of which
// only a name of some bytes is of use.
func TestHeadersAreNotKept(t *testing.T) {
	c := newCage(t)
	junk := strings.Repeat("j", 1<<20-1000)
	const n = 60
	r, w := io.Pipe()
	go func() {
		tw := tar.NewWriter(w)
		for i := range n {
			for _, h := range []tar.Header{
				{Name: fmt.Sprintf("dé%d/", i), Typeflag: tar.TypeDir, PAXRecords: map[string]string{"SCHILY.xattr.user.a": "1"}},
				{Name: fmt.Sprintf(".wh.é%d", i), Typeflag: tar.TypeReg, PAXRecords: map[string]string{}},
			} {
				h.Format, h.PAXRecords["JUNK.comment"] = tar.FormatPAX, junk
				if err := tw.WriteHeader(&h); err != nil {
					w.CloseWithError(err)
					return
				}
			}
		}
		w.CloseWithError(tw.Close())
	}()
	defer r.Close()
	before := heap()
	tree, err := layer.Apply(t.Context(), c.dir, r, base)
	if err != nil {
		t.Fatal(err)
	}
	if after := heap() - before; after > 20<<20 {
		t.Errorf("%d MiB are kept of %d entries", after>>20, 2*n)
	}
	if err := tree.Finish(t.Context(), &layer.Lower{}); err != nil {
		t.Fatal(err)
	}
}

func TestReserveEndsApply(t *testing.T) {
	c := newCage(t)
	full := errors.New("full")
	o := base
	o.Reserve = func(int64) error { return full }
	if err := c.apply(Tar(File{Name: "d/"}), o); !errors.Is(err, full) {
		t.Errorf("err = %v", err)
	}
}

func TestSparseFilesStaySparse(t *testing.T) {
	c := newCage(t)
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	data := strings.Repeat("d", 4096)
	// PAX sparse format 1.0: the map is at the beginning of the data.
	m := "2\n0\n0\n67108864\n4096\n"
	body := m + strings.Repeat("\x00", 512-len(m)) + data
	h := &tar.Header{Name: "GNUSparseFile.0/f", Typeflag: tar.TypeReg, Size: int64(len(body)), Mode: 0o644, Format: tar.FormatPAX, PAXRecords: map[string]string{
		"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "f", "GNU.sparse.realsize": fmt.Sprint(64<<20 + 4096),
	}}
	// The writer refuses these keys, so they go in under others of their length.
	for _, k := range []string{"major", "minor", "name", "realsize"} {
		h.PAXRecords["XXX.sparse."+k] = h.PAXRecords["GNU.sparse."+k]
		delete(h.PAXRecords, "GNU.sparse."+k)
	}
	if err := w.WriteHeader(h); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, body); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	stream := bytes.ReplaceAll(b.Bytes(), []byte("XXX.sparse."), []byte("GNU.sparse."))
	if err := c.apply(stream, base); err != nil {
		t.Fatal(err)
	}
	var st unix.Stat_t
	if err := unix.Stat(filepath.Join(c.dir, "f"), &st); err != nil {
		t.Fatal(err)
	}
	if st.Size != 64<<20+4096 || st.Blocks*512 > 1<<20 {
		t.Errorf("size %d, on disk %d", st.Size, st.Blocks*512)
	}
	raw, err := os.ReadFile(filepath.Join(c.dir, "f"))
	if err != nil || string(raw[64<<20:]) != data || !bytes.Equal(raw[:4096], make([]byte, 4096)) {
		t.Errorf("content differs, %v", err)
	}
}

func TestManyEntriesWithFewDescriptors(t *testing.T) {
	c := newCage(t)
	var files []File
	for i := range 400 {
		d := fmt.Sprintf("d%d/e/f", i)
		files = append(files, File{Name: d + "/a", Data: "x"}, File{Name: fmt.Sprintf("d%d/e/f/h", (i*7)%(i+1)), Link: d + "/a", Type: tar.TypeLink})
	}
	files = append(files, File{Name: strings.Repeat("x/", 1500) + "deep"}, File{Name: strings.Repeat("y/", 1500) + "link", Link: strings.Repeat("x/", 1500) + "deep", Type: tar.TypeLink})
	before := descriptors(t)
	if err := c.apply(Tar(files...), base); err != nil {
		t.Fatal(err)
	}
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors leaked", after-before)
	}
}

func descriptors(t *testing.T) int {
	t.Helper()
	ents, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(ents)
}

func TestDamagedStreams(t *testing.T) {
	good := Tar(File{Name: "d/"}, File{Name: "d/f", Data: strings.Repeat("x", 5000)}, File{Name: "g"})
	var blobs [][]byte
	for n := 1; n < len(good)-1024; n += 300 {
		blobs = append(blobs, good[:n])
	}
	z, s := Gzip(good), Zstd(good)
	for n := 3; n < len(z); n += 9 {
		bad := bytes.Clone(z)
		bad[n] ^= 0x55
		blobs = append(blobs, z[:n], bad)
	}
	for n := 5; n < len(s); n += 9 {
		blobs = append(blobs, s[:n])
	}
	for i, b := range blobs {
		c := newCage(t)
		u, err := layer.Unpack(t.Context(), c.dir, bytes.NewReader(b), base)
		if err == nil && (u.DiffID == digest.FromBytes(good) || u.Compression == layer.Plain) {
			continue // a bit that means nothing, or a cut that the diff ID tells
		}
		if err == nil {
			t.Errorf("stream %d of %d bytes passes for the good one: %v", i, len(b), err)
		}
		if !errdefs.Is(err, errdefs.Invalid) {
			t.Errorf("stream %d of %d bytes: err = %v, want Invalid", i, len(b), err)
		}
		c.check()
	}
}

func TestErrorsOfTheSourceComeThrough(t *testing.T) {
	boom := errors.New("boom")
	for _, blob := range [][]byte{Tar(File{Name: "f", Data: strings.Repeat("x", 5000)}), Gzip(Tar(File{Name: "f", Data: strings.Repeat("x", 5000)}))} {
		for _, cause := range []error{boom, io.ErrUnexpectedEOF} {
			c := newCage(t)
			src := io.MultiReader(bytes.NewReader(blob[:len(blob)/2]), failing{cause})
			if _, err := layer.Unpack(t.Context(), c.dir, src, base); !errors.Is(err, cause) {
				t.Errorf("err = %v, want %v", err, cause)
			}
		}
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func FuzzApply(f *testing.F) {
	for _, files := range [][]File{
		{{Name: "d/"}, {Name: "d/f", Data: "x", Mode: 0o4755}, {Name: "l", Link: "../../victim"}, {Name: "l/x"}},
		{{Name: "a", Link: "/"}, {Name: "a/../../x", Data: "y"}, {Name: "h", Link: "a", Type: tar.TypeLink}},
		{{Name: "low/.wh.f"}, {Name: "low/.wh..wh..opq"}, {Name: ".wh.low"}, {Name: "low/x"}, {Name: ".wh..wh..opq"}},
		{{Name: "h", Link: "low/f", Type: tar.TypeLink}, {Name: "link/g"}, {Name: "p", Type: tar.TypeFifo}},
		{{Name: "x", Data: "1"}, {Name: "x/"}, {Name: "x/y", Data: "2"}, {Name: "x", Xattr: map[string]string{"user.a": "b"}}},
	} {
		f.Add(Tar(files...))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		c := newCage(t)
		low := filepath.Join(c.root, "in/low")
		for _, dir := range []string{low, filepath.Join(low, "low")} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(os.WriteFile(filepath.Join(low, "low/f"), []byte("x"), 0o644), os.Symlink("../../../../etc", filepath.Join(low, "link"))); err != nil {
			t.Fatal(err)
		}
		c.outside = c.look()
		limits := layer.Limits{Entries: 500, Bytes: 4 << 20, Path: 4096}
		lower, err := layer.OpenLower([]string{low})
		if err != nil {
			t.Fatal(err)
		}
		defer lower.Close()
		tree, err := layer.Apply(t.Context(), c.dir, bytes.NewReader(stream), layer.Options{Limits: limits})
		if err == nil {
			err = tree.Finish(t.Context(), lower)
		}
		c.check()
		if errors.Is(err, layer.ErrNeedsParent) {
			if err := errors.Join(os.RemoveAll(c.dir), os.Mkdir(c.dir, 0o755)); err != nil {
				t.Fatal(err)
			}
			c.outside = c.look()
			if tree, err = layer.Apply(t.Context(), c.dir, bytes.NewReader(stream), layer.Options{Limits: limits, Lower: lower}); err == nil {
				err = tree.Finish(t.Context(), lower)
			}
			c.check()
			if errors.Is(err, layer.ErrNeedsParent) {
				t.Error("the layer needs a parent that it has")
			}
		}
	})
}
