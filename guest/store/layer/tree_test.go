//go:build linux

package layer_test

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"

	"dhow/guest/store/layer"
	"dhow/guest/store/snapshot"
	. "dhow/guest/store/storetest"
)

// stack applies layers as the store does: each into a directory of its own,
// all before any of them is finished; then bottom first.
type stack struct {
	dir    string
	redone int // layers that needed their parent
}

func (s *stack) layer(i int) string { return filepath.Join(s.dir, fmt.Sprintf("%d/fs", i)) }

// dirs returns the directories of the first n layers, top first.
func (s *stack) dirs(n int) (out []string) {
	for i := n - 1; i >= 0; i-- {
		out = append(out, s.layer(i))
	}
	return out
}

func (s *stack) apply(t testing.TB, streams [][]byte) error {
	t.Helper()
	trees := make([]*layer.Tree, len(streams))
	for i, stream := range streams {
		if err := os.MkdirAll(s.layer(i), 0o755); err != nil {
			t.Fatal(err)
		}
		u, err := layer.Unpack(t.Context(), s.layer(i), bytes.NewReader(stream), layer.Options{})
		if err != nil {
			return err
		}
		if want := digest.FromBytes(stream); u.DiffID != want || u.Size != int64(len(stream)) {
			t.Fatalf("diff ID = %s, size = %d; want %s, %d", u.DiffID, u.Size, want, len(stream))
		}
		trees[i] = u.Tree
	}
	for i := range streams {
		lower, err := layer.OpenLower(s.dirs(i))
		if err != nil {
			t.Fatal(err)
		}
		err = layer.ErrNeedsParent
		if trees[i] != nil {
			err = trees[i].Finish(t.Context(), lower)
		}
		if errors.Is(err, layer.ErrNeedsParent) {
			s.redone++
			if err = os.RemoveAll(s.layer(i)); err == nil {
				err = os.Mkdir(s.layer(i), 0o755)
			}
			if err != nil {
				t.Fatal(err)
			}
			trees[i], err = layer.Apply(t.Context(), s.layer(i), bytes.NewReader(streams[i]), layer.Options{Lower: lower})
			if err == nil {
				err = trees[i].Finish(t.Context(), lower)
			}
		}
		lower.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// mounted reads the merged tree through the kernel's overlayfs.
func (s *stack) mounted(t testing.TB, n int) map[string]Entry {
	t.Helper()
	m := snapshot.Mount{Type: "bind", Source: s.layer(0), Options: []string{"ro", "rbind"}}
	if n > 1 {
		var lower []string
		for i := n - 1; i >= 0; i-- {
			lower = append(lower, fmt.Sprintf("%d/fs", i))
		}
		m = snapshot.Mount{Type: "overlay", Source: "overlay", Options: []string{"ro", "lowerdir=" + strings.Join(lower, ":")}, Dir: s.dir}
	}
	var got map[string]Entry
	if err := WithMounts(t, []snapshot.Mount{m}, func(root string) (err error) { got, err = ReadTree(root); return err }); err != nil {
		t.Fatal(err)
	}
	return got
}

// compare applies streams both ways and compares each level of the stack.
func compare(t testing.TB, streams [][]byte, links bool) (redone int, err error) {
	t.Helper()
	began := time.Now()
	s := &stack{dir: t.TempDir()}
	plain := Reference{Root: filepath.Join(t.TempDir(), "plain")}
	if err := os.Mkdir(plain.Root, 0o755); err != nil {
		t.Fatal(err)
	}
	got := s.apply(t, streams)
	for i, stream := range streams {
		if want := plain.Apply(stream); want != nil {
			if got == nil {
				t.Fatalf("layer %d: the reference fails, we do not: %v", i, want)
			}
			return s.redone, got
		}
		if got != nil {
			continue
		}
		want, err := ReadTree(plain.Root)
		if err != nil {
			t.Fatal(err)
		}
		have := s.mounted(t, i+1)
		for _, tree := range []map[string]Entry{want, have} {
			for p, e := range tree {
				if e.Mtime >= began.Add(-time.Second).UnixNano() {
					e.Mtime = 0 // made by nobody's entry: the time of day
				}
				if !links {
					e.Link = ""
				}
				tree[p] = e
			}
		}
		if d := DiffTrees(have, want); len(d) > 0 {
			t.Fatalf("after layer %d:\n%s", i, strings.Join(d, "\n"))
		}
	}
	if got != nil {
		t.Fatalf("we fail, the reference does not: %v", got)
	}
	return s.redone, nil
}

func TestLayersMergeAsIfAppliedOneByOne(t *testing.T) {
	NeedOverlay(t)
	capability := "\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"
	many := []File{{Name: "./", Mode: 0o751, UID: 3}, {Name: "d/", Mode: 0o2775, GID: 8}}
	for i := range 200 {
		many = append(many, File{Name: fmt.Sprintf("d/%03d", i), Data: "x"})
	}
	long := strings.Repeat(strings.Repeat("n", 250)+"/", 15) + strings.Repeat("n", 200)
	for name, c := range map[string]struct {
		layers [][]File
		redone int
	}{
		"metadata": {layers: [][]File{{
			{Name: "./", Mode: 0o755}, {Name: "bin/"}, {Name: "bin/su", Data: "su", Mode: 0o4755, UID: 0, GID: 5},
			{Name: "bin/ping", Data: "p", Mode: 0o755, Xattr: map[string]string{"security.capability": capability, "user.a": "b\x00c"}},
			{Name: "tmp/", Mode: 0o1777, Xattr: map[string]string{"user.dir": "1"}}, {Name: "dev/"},
			{Name: "dev/null", Type: tar.TypeChar, Mode: 0o666, Major: 1, Minor: 3}, {Name: "dev/sda", Type: tar.TypeBlock, Mode: 0o660, Major: 8, GID: 6},
			{Name: "dev/pipe", Type: tar.TypeFifo}, {Name: "link", Link: "../../etc/passwd", UID: 7}, {Name: "abs", Link: "/bin/su"},
			{Name: "old", Data: "x", Time: time.Unix(1, 5)}, {Name: "big", Data: strings.Repeat("0123456789abcdef", 100_000)}, {Name: "empty"},
		}}},
		"directory replaced by a file, without and with a whiteout": {layers: [][]File{
			many, {{Name: "d", Data: "now a file"}}, {{Name: "d/"}, {Name: "d/again"}}, {{Name: ".wh.d"}}, {{Name: ".wh.d"}, {Name: "d", Data: "once more"}},
		}},
		"implied directories look as those below": {layers: [][]File{
			{{Name: "a/", Mode: 0o700, UID: 5, GID: 6, Xattr: map[string]string{"user.x": "1"}}, {Name: "a/b/", Mode: 0o1777}, {Name: "a/b/f"}},
			{{Name: "a/b/g", Data: "1"}}, {{Name: "a/.wh.b"}}, {{Name: "a/b/h"}}, {{Name: "new/dir/f"}},
		}},
		"whiteout and entry in one layer": {layers: [][]File{
			{{Name: "x/"}, {Name: "x/low"}, {Name: "y", Data: "low"}, {Name: "z/"}, {Name: "z/low"}},
			{{Name: ".wh.x"}, {Name: "x/"}, {Name: "x/high"}, {Name: "y", Data: "high"}, {Name: ".wh.y"}, {Name: "z/"}, {Name: "z/high"}, {Name: ".wh.z"}},
		}},
		"opaque": {layers: [][]File{
			{{Name: "d/"}, {Name: "d/low"}, {Name: "d/sub/"}, {Name: "d/sub/low"}, {Name: "top"}},
			{{Name: "d/"}, {Name: "d/sub/"}, {Name: "d/sub/high"}, {Name: "d/.wh..wh..opq"}},
			{{Name: "d/again"}, {Name: "d/.wh.sub"}}, {{Name: ".wh..wh..opq"}, {Name: "only"}}, {{Name: "top"}},
		}},
		"whiteouts that hide nothing do not show": {layers: [][]File{
			{{Name: "d/"}, {Name: "d/.wh.nothing"}, {Name: ".wh.x"}}, {{Name: "e/"}, {Name: "e/.wh.nothing"}, {Name: "d/.wh.none"}}, {{Name: "f"}},
		}},
		"entries twice": {layers: [][]File{{
			{Name: "f", Data: "one"}, {Name: "f", Data: "2"}, {Name: "d/", Mode: 0o700, Xattr: map[string]string{"user.a": "1"}}, {Name: "d/f"}, {Name: "d/", Mode: 0o755},
			{Name: "g/"}, {Name: "g/x/y"}, {Name: "g", Data: "file"}, {Name: "h", Data: "file"}, {Name: "h/"}, {Name: "l", Link: "a"}, {Name: "l", Link: "b"},
		}, {{Name: "d", Link: "x"}, {Name: "d/"}, {Name: "d/new"}}}},
		"hard links": {layers: [][]File{
			{{Name: "a", Data: "1"}, {Name: "b", Link: "a", Type: tar.TypeLink}, {Name: "d/c", Link: "/b", Type: tar.TypeLink}, {Name: "s", Link: "a"}, {Name: "sl", Link: "s", Type: tar.TypeLink}},
			{{Name: "e", Data: "2"}, {Name: "a", Link: "e", Type: tar.TypeLink}},
		}},
		"hard link into the layer below": {redone: 1, layers: [][]File{
			{{Name: "d/", Mode: 0o750, UID: 9}, {Name: "d/f", Data: "data", Mode: 0o4711, UID: 2, Xattr: map[string]string{"user.k": "v"}}, {Name: "l", Link: "to"}},
			{{Name: "n", Link: "d/f", Type: tar.TypeLink}, {Name: "m", Link: "n", Type: tar.TypeLink}},
		}},
		"path through a link of the layer below": {redone: 2, layers: [][]File{
			{{Name: "usr/lib/", Mode: 0o711}, {Name: "lib", Link: "usr/lib"}, {Name: "loop", Link: "/lib/../lib"}},
			{{Name: "lib/f", Data: "through"}, {Name: "lib/.wh.nothing"}}, {{Name: "loop/.wh.f"}, {Name: "loop/g"}},
		}},
		"path through a link of the layer itself": {layers: [][]File{
			{{Name: "usr/lib/"}, {Name: "lib", Link: "usr/lib"}, {Name: "lib/f"}, {Name: "up", Link: "../../.."}, {Name: "up/../x"}, {Name: "abs", Link: "/usr"}, {Name: "abs/y"}},
		}},
		"link replaced by a directory": {layers: [][]File{
			{{Name: "usr/lib/"}, {Name: "lib", Link: "usr/lib"}}, {{Name: "lib/", Mode: 0o700}, {Name: "lib/f"}},
		}},
		"long names": {layers: [][]File{{{Name: long, Data: "x"}}, {{Name: long + "2", Link: strings.Repeat("l", 4000)}}}},
		"odd names": {layers: [][]File{{
			{Name: "/abs"}, {Name: "./a/../b"}, {Name: "a//c"}, {Name: "sp ace\n\xff"}, {Name: ".wh..wh.aufs"}, {Name: ".wh..wh.plnk/1.2"}, {Name: "a:b,c\\d/e"},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			var streams [][]byte
			for _, files := range c.layers {
				streams = append(streams, Tar(files...))
			}
			redone, err := compare(t, streams, true)
			if err != nil {
				t.Fatal(err)
			}
			if redone != c.redone {
				t.Errorf("%d layers needed their parent, want %d", redone, c.redone)
			}
		})
	}
}

// randomLayer makes a layer whose names collide often.
func randomLayer(r *rand.Rand) []byte {
	name := func() string {
		parts := make([]string, 1+r.IntN(3))
		for i := range parts {
			parts[i] = string("abc"[r.IntN(3)])
		}
		return strings.Join(parts, "/")
	}
	var files []File
	for range 1 + r.IntN(8) {
		f := File{Name: name(), Mode: int64(r.IntN(0o10000)), UID: r.IntN(3), Time: time.Unix(int64(r.IntN(1e9)), 0)}
		switch r.IntN(14) {
		case 0, 1:
			f.Data = name()
		case 3, 4, 9, 10, 11, 12:
			f.Name += "/"
			f.Mode |= 0o100
			if r.IntN(4) == 0 {
				f.Xattr = map[string]string{"user.x": name()}
			}
		case 5:
			f.Link = []string{name(), "../" + name(), "/" + name(), "nowhere", "."}[r.IntN(5)]
		case 6:
			f.Type, f.Link = tar.TypeLink, name()
		case 2, 7, 13:
			d, base := filepath.Split(f.Name)
			f.Name = d + ".wh." + base
		case 8:
			f.Name += "/.wh..wh..opq"
			if r.IntN(3) == 0 {
				f.Type = tar.TypeFifo
				f.Name = name()
			}
		}
		files = append(files, f)
	}
	return Tar(files...)
}

func TestRandomLayersMergeAsIfAppliedOneByOne(t *testing.T) {
	NeedOverlay(t)
	rounds := 150 // by ROUNDS, as many as you have time for
	if n, err := strconv.Atoi(os.Getenv("ROUNDS")); err == nil {
		rounds = n
	}
	good, redone := 0, 0
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 1))
		streams := make([][]byte, 1+r.IntN(4))
		for i := range streams {
			streams[i] = randomLayer(r)
		}
		ok := t.Run(fmt.Sprintf("seed %d", seed), func(t *testing.T) {
			n, err := compare(t, streams, false)
			redone += n
			if err == nil {
				good++
			}
			if t.Failed() {
				for i, s := range streams {
					t.Logf("layer %d:\n%s", i, describe(s))
				}
			}
		})
		if !ok {
			for i, s := range streams {
				t.Logf("seed %d, layer %d:\n%s", seed, i, describe(s))
			}
			return
		}
	}
	t.Logf("%d of %d stacks are valid, %d layers needed their parent", good, rounds, redone)
	if good < rounds/4 || redone == 0 {
		t.Errorf("the generator tests too little")
	}
}

func describe(stream []byte) string {
	var b strings.Builder
	for r := tar.NewReader(bytes.NewReader(stream)); ; {
		h, err := r.Next()
		if err != nil {
			return b.String()
		}
		fmt.Fprintf(&b, "  %c %q -> %q mode %o\n", h.Typeflag, h.Name, h.Linkname, h.Mode)
	}
}
