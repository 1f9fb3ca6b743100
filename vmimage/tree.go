package vmimage

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"
	"time"
)

// epoch is the modification time of every file of the image.
var epoch = time.Unix(0, 0).UTC()

// node is one file of a tree. Everything belongs to root.
type node struct {
	mode fs.FileMode // type (regular, fs.ModeDir, fs.ModeSymlink) and permission bits
	data []byte
	link string
}

// tree is a file system's content by slash-separated path, without a leading
// slash. Parents of what is added exist.
type tree map[string]node

func (t tree) add(name string, n node) {
	name = strings.TrimPrefix(path.Clean("/"+name), "/")
	for d := path.Dir(name); d != "."; d = path.Dir(d) {
		if _, ok := t[d]; !ok {
			t[d] = node{mode: fs.ModeDir | 0o755}
		}
	}
	t[name] = n
}

func (t tree) file(name string, perm fs.FileMode, data []byte) {
	t.add(name, node{mode: perm, data: data})
}
func (t tree) symlink(name, to string) { t.add(name, node{mode: fs.ModeSymlink | 0o777, link: to}) }

func (t tree) dir(perm fs.FileMode, names ...string) {
	for _, n := range names {
		t.add(n, node{mode: fs.ModeDir | perm})
	}
}

func (t tree) names() []string {
	out := make([]string, 0, len(t))
	for n := range t {
		out = append(out, n)
	}
	sort.Strings(out) // parents come before what is in them
	return out
}

// writeDir writes the tree below dir, which exists and is empty.
func (t tree) writeDir(dir string) error {
	for _, name := range t.names() {
		n, p := t[name], filepath.Join(dir, filepath.FromSlash(name))
		var err error
		switch n.mode.Type() {
		case fs.ModeDir:
			err = os.Mkdir(p, 0o755)
		case fs.ModeSymlink:
			err = os.Symlink(n.link, p)
		default:
			err = os.WriteFile(p, n.data, 0o600)
		}
		if err == nil && n.mode.Type() != fs.ModeSymlink {
			// Explicitly: the umask must not be part of the image. 0777 modes
			// with the sticky bit are Go's own bit.
			err = os.Chmod(p, n.mode.Perm()|n.mode&fs.ModeSticky)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Types of cpio's newc format (Documentation/driver-api/early-userspace/buffer-format.rst).
const (
	cpioDir     = 0o040000
	cpioRegular = 0o100000
	cpioSymlink = 0o120000
)

// writeCPIO writes the tree as one newc archive with its trailer, padded to 512
// bytes, so that another archive can follow it.
func (t tree) writeCPIO(w io.Writer) error {
	c := &countWriter{w: w}
	for i, name := range t.names() {
		n := t[name]
		mode, data, links := uint32(n.mode.Perm()), n.data, 1
		switch n.mode.Type() {
		case fs.ModeDir:
			mode |= cpioDir
			links = 2
		case fs.ModeSymlink:
			mode |= cpioSymlink
			data = []byte(n.link)
		default:
			mode |= cpioRegular
		}
		c.entry(i+1, name, mode, links, data)
	}
	c.entry(0, "TRAILER!!!", 0, 1, nil)
	c.pad(512)
	return c.err
}

type countWriter struct {
	w   io.Writer
	n   int64
	err error
}

func (c *countWriter) write(b []byte) {
	if c.err == nil {
		var n int
		n, c.err = c.w.Write(b)
		c.n += int64(n)
	}
}

func (c *countWriter) pad(to int64) {
	if r := c.n % to; r != 0 {
		c.write(make([]byte, to-r))
	}
}

func (c *countWriter) entry(ino int, name string, mode uint32, links int, data []byte) {
	c.write(fmt.Appendf(nil, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%s\x00",
		ino, mode, 0, 0, links, epoch.Unix(), len(data), 0, 0, 0, 0, len(name)+1, 0, name))
	c.pad(4)
	c.write(data)
	c.pad(4)
}
