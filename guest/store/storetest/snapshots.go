//go:build linux

package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"dhow/guest/store/snapshot"
	"dhow/internal/errdefs"
)

// Snapshots is the conformance suite of snapshot.Snapshotter. open returns an
// empty one. It needs root, and mounts in namespaces of its own.
func Snapshots(t *testing.T, open func(*testing.T) snapshot.Snapshotter) {
	NeedOverlay(t)
	for name, fn := range map[string]func(*snapshotTest){
		"an active snapshot keeps what is written":           (*snapshotTest).roundTrip,
		"a child sees its parents and hides nothing of them": (*snapshotTest).inherit,
		"removal in a child":                                 (*snapshotTest).removal,
		"a parent never changes":                             (*snapshotTest).immutable,
		"a view cannot be written":                           (*snapshotTest).view,
		"kinds":                                              (*snapshotTest).kinds,
		"names are taken once":                               (*snapshotTest).names,
		"a parent with children stays":                       (*snapshotTest).children,
		"labels":                                             (*snapshotTest).labels,
		"usage":                                              (*snapshotTest).usage,
		"rebase at commit":                                   (*snapshotTest).rebase,
		"128 layers":                                         (*snapshotTest).deep,
		"the root's owner and mode come from the parent":  (*snapshotTest).rootMode,
		"a directory made anew does not show the old one": (*snapshotTest).remake,
		"rename of a directory of a layer below":          (*snapshotTest).rename,
		"hard links over a commit":                        (*snapshotTest).hardlinks,
		"a file is moved over another of a layer below":   (*snapshotTest).replace,
		"a second container of one image":                 (*snapshotTest).siblings,
		"many at once":                                    (*snapshotTest).parallel,
		"walk":                                            (*snapshotTest).walk,
		"a failed commit leaves the snapshot active":      (*snapshotTest).failedCommit,
		"a key can be used again":                         (*snapshotTest).reuse,
		"a child of nothing":                              (*snapshotTest).missingParent,
		"an empty view":                                   (*snapshotTest).emptyView,
		"chown of a file of a layer below":                (*snapshotTest).chown,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			fn(&snapshotTest{t, s, context.Background()})
			if err := errors.Join(s.Cleanup(context.Background()), s.Close()); err != nil {
				t.Error(err)
			}
		})
	}
}

type snapshotTest struct {
	*testing.T
	s   snapshot.Snapshotter
	ctx context.Context
}

func (t *snapshotTest) ok(err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// change runs steps in the mounted snapshot key; a step is like a shell line:
// "write f data", "rm -r d", "mkdir d", "mv a b", "ln a b", "chmod 711 f".
func (t *snapshotTest) change(key string, steps ...string) {
	t.Helper()
	m, err := t.s.Mounts(t.ctx, key)
	t.ok(err)
	t.ok(WithMounts(t, m, func(root string) error {
		for _, s := range steps {
			if err := step(root, strings.Fields(s)); err != nil {
				return fmt.Errorf("%s: %w", s, err)
			}
		}
		return nil
	}))
}

func step(root string, w []string) error {
	at := func(i int) string { return filepath.Join(root, w[i]) }
	switch w[0] {
	case "write":
		return os.WriteFile(at(1), []byte(w[2]), 0o644)
	case "rm":
		return os.RemoveAll(at(1))
	case "mkdir":
		return os.MkdirAll(at(1), 0o755)
	case "mv":
		return os.Rename(at(1), at(2))
	case "mvdir": // as mv(1) does where rename gives EXDEV
		err := os.Rename(at(1), at(2))
		if errors.Is(err, unix.EXDEV) {
			if err = copyTree(at(1), at(2)); err == nil {
				err = os.RemoveAll(at(1))
			}
		}
		return err
	case "ln":
		return os.Link(at(1), at(2))
	case "chmod":
		var mode uint32
		if _, err := fmt.Sscanf(w[1], "%o", &mode); err != nil {
			return err
		}
		return unix.Chmod(at(2), mode)
	case "chown":
		return os.Chown(at(1), 5, 6)
	}
	return fmt.Errorf("unknown step")
}

// prepare makes an active snapshot and changes it.
func (t *snapshotTest) prepare(key, parent string, steps ...string) {
	t.Helper()
	_, err := t.s.Prepare(t.ctx, key, parent)
	t.ok(err)
	if len(steps) > 0 {
		t.change(key, steps...)
	}
}

// layer makes a committed snapshot.
func (t *snapshotTest) layer(name, parent string, steps ...string) {
	t.Helper()
	t.prepare(name+"-active", parent, steps...)
	t.ok(t.s.Commit(t.ctx, name, name+"-active"))
}

// want compares the files of a mounted snapshot: "path=content", "path/" for
// directories; all of them.
func (t *snapshotTest) want(key string, files ...string) {
	t.Helper()
	m, err := t.s.Mounts(t.ctx, key)
	t.ok(err)
	var got []string
	t.ok(WithMounts(t, m, func(root string) error {
		return filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
			rel, _ := filepath.Rel(root, p)
			switch {
			case err != nil || rel == ".":
				return err
			case d.IsDir():
				got = append(got, rel+"/")
			default:
				raw, err := os.ReadFile(p)
				got = append(got, rel+"="+string(raw))
				return err
			}
			return nil
		})
	}))
	slices.Sort(got)
	slices.Sort(files)
	if !slices.Equal(got, files) {
		t.Errorf("%s holds\n%q, want\n%q", key, got, files)
	}
}

// wantLayer compares what a container on a committed snapshot sees.
func (t *snapshotTest) wantLayer(name string, files ...string) {
	t.Helper()
	_, err := t.s.View(t.ctx, name+"-view", name)
	t.ok(err)
	t.want(name+"-view", files...)
	t.ok(t.s.Remove(t.ctx, name+"-view"))
}

func (t *snapshotTest) roundTrip() {
	t.prepare("a", "", "write f 1", "mkdir d", "write d/g 2")
	t.want("a", "f=1", "d/", "d/g=2")
	t.change("a", "write f 3")
	t.want("a", "f=3", "d/", "d/g=2")
	t.ok(t.s.Commit(t.ctx, "l", "a"))
	t.wantLayer("l", "f=3", "d/", "d/g=2")
	t.ok(t.s.Remove(t.ctx, "l"))
}

func (t *snapshotTest) inherit() {
	t.layer("1", "", "write a 1", "mkdir d", "write d/a 1")
	t.layer("2", "1", "write b 2", "write d/b 2", "write a 2")
	t.layer("3", "2", "mkdir d/e", "write d/e/c 3")
	t.prepare("c", "3", "write own x")
	t.want("c", "a=2", "b=2", "d/", "d/a=1", "d/b=2", "d/e/", "d/e/c=3", "own=x")
	t.wantLayer("1", "a=1", "d/", "d/a=1")
	t.wantLayer("2", "a=2", "b=2", "d/", "d/a=1", "d/b=2")
}

func (t *snapshotTest) removal() {
	t.layer("1", "", "write a 1", "mkdir d/e", "write d/e/f 1", "write d/g 1")
	t.layer("2", "1", "rm a", "rm d/e")
	t.wantLayer("2", "d/", "d/g=1")
	t.layer("3", "2", "mkdir d/e", "write a 3")
	t.wantLayer("3", "a=3", "d/", "d/e/", "d/g=1")
	t.layer("4", "3", "rm d")
	t.wantLayer("4", "a=3")
	t.wantLayer("1", "a=1", "d/", "d/e/", "d/e/f=1", "d/g=1")
}

func (t *snapshotTest) immutable() {
	t.layer("1", "", "write a 1", "mkdir d")
	t.prepare("c", "1", "write a changed", "rm d", "chmod 700 a")
	t.wantLayer("1", "a=1", "d/")
	t.ok(t.s.Remove(t.ctx, "c"))
	t.wantLayer("1", "a=1", "d/")
}

func (t *snapshotTest) view() {
	t.layer("1", "", "write a 1")
	t.layer("2", "1", "write b 2")
	for _, parent := range []string{"1", "2"} {
		m, err := t.s.View(t.ctx, "v"+parent, parent)
		t.ok(err)
		t.ok(WithMounts(t, m, func(root string) error {
			err := os.WriteFile(filepath.Join(root, "x"), nil, 0o644)
			if !errors.Is(err, unix.EROFS) {
				t.Errorf("write to a view of %s: %v, want EROFS", parent, err)
			}
			return nil
		}))
		err = t.s.Commit(t.ctx, "from view", "v"+parent)
		wantClass(t, "commit of a view", err, errdefs.Invalid)
		u, err := t.s.Usage(t.ctx, "v"+parent)
		if err != nil || u.Inodes != 0 || u.Size != 0 {
			t.Errorf("usage of a view = %+v, %v", u, err)
		}
	}
}

func (t *snapshotTest) kinds() {
	t.layer("1", "")
	t.prepare("a", "1")
	_, err := t.s.View(t.ctx, "v", "1")
	t.ok(err)
	for name, want := range map[string]snapshot.Info{
		"1": {Kind: snapshot.Committed}, "a": {Kind: snapshot.Active, Parent: "1"}, "v": {Kind: snapshot.View, Parent: "1"},
	} {
		i, err := t.s.Stat(t.ctx, name)
		if err != nil || i.Kind != want.Kind || i.Parent != want.Parent || i.Name != name || i.Created.IsZero() || i.Updated.Before(i.Created) {
			t.Errorf("Stat(%s) = %+v, %v", name, i, err)
		}
	}
	_, err = t.s.Mounts(t.ctx, "1")
	wantClass(t, "mounts of a committed snapshot", err, errdefs.Invalid)
	_, err = t.s.Prepare(t.ctx, "x", "a")
	wantClass(t, "an active parent", err, errdefs.Invalid)
	_, err = t.s.View(t.ctx, "x", "v")
	wantClass(t, "a view as parent", err, errdefs.Invalid)
	wantClass(t, "commit of a committed one", t.s.Commit(t.ctx, "x", "1"), errdefs.Invalid)
	_, err = t.s.Stat(t.ctx, "x")
	wantClass(t, "nothing was made", err, errdefs.NotFound)
}

func (t *snapshotTest) names() {
	t.layer("1", "")
	t.prepare("a", "")
	for what, err := range map[string]error{
		"prepare of a key":       second(t.s.Prepare(t.ctx, "a", "")),
		"prepare of a name":      second(t.s.Prepare(t.ctx, "1", "")),
		"view":                   second(t.s.View(t.ctx, "a", "1")),
		"commit to a name":       t.s.Commit(t.ctx, "1", "a"),
		"commit to an other key": t.s.Commit(t.ctx, "a", "a"),
	} {
		wantClass(t, what, err, errdefs.Conflict)
		if !errors.Is(err, snapshot.ErrExists) {
			t.Errorf("%s: %v, want ErrExists in it", what, err)
		}
	}
	for _, bad := range []string{"", "a\x00b", strings.Repeat("x", 5000)} {
		wantClass(t, "bad key", second(t.s.Prepare(t.ctx, bad, "")), errdefs.Invalid)
		wantClass(t, "bad name", t.s.Commit(t.ctx, bad, "a"), errdefs.Invalid)
	}
	for _, odd := range []string{"../../etc", "a/b c", "ü\n", "sha256:abc"} {
		t.prepare(odd, "1")
		t.ok(t.s.Remove(t.ctx, odd))
	}
}

func second(_ []snapshot.Mount, err error) error { return err }

func (t *snapshotTest) children() {
	t.layer("1", "")
	t.layer("2", "1")
	t.prepare("a", "2")
	for _, name := range []string{"1", "2"} {
		err := t.s.Remove(t.ctx, name)
		wantClass(t, "remove "+name, err, errdefs.Conflict)
		if !errors.Is(err, snapshot.ErrHasChildren) {
			t.Errorf("remove %s: %v, want ErrHasChildren in it", name, err)
		}
	}
	for _, name := range []string{"a", "2", "1"} {
		t.ok(t.s.Remove(t.ctx, name))
		wantClass(t, "second removal", t.s.Remove(t.ctx, name), errdefs.NotFound)
	}
}

func (t *snapshotTest) labels() {
	_, err := t.s.Prepare(t.ctx, "a", "", snapshot.WithLabels(map[string]string{"k": "v", "": "\x00"}))
	t.ok(err)
	i, err := t.s.Stat(t.ctx, "a")
	if want := map[string]string{"k": "v", "": "\x00"}; err != nil || !maps.Equal(i.Labels, want) {
		t.Errorf("labels = %v, %v", i.Labels, err)
	}
	t.ok(t.s.Commit(t.ctx, "1", "a"))
	if i, err = t.s.Stat(t.ctx, "1"); err != nil || i.Labels["k"] != "v" {
		t.Errorf("labels after commit = %v, %v", i.Labels, err)
	}
	i.Labels = map[string]string{"new": "1"}
	i.Parent, i.Kind = "elsewhere", snapshot.Active
	if i, err = t.s.Update(t.ctx, i); err != nil || i.Kind != snapshot.Committed || i.Parent != "" || i.Labels["new"] != "1" || len(i.Labels) != 1 {
		t.Errorf("Update = %+v, %v", i, err)
	}
	_, err = t.s.Update(t.ctx, snapshot.Info{Name: "nobody"})
	wantClass(t, "Update", err, errdefs.NotFound)
}

func (t *snapshotTest) usage() {
	t.prepare("a", "")
	before, err := t.s.Usage(t.ctx, "a")
	t.ok(err)
	m, err := t.s.Mounts(t.ctx, "a")
	t.ok(err)
	t.ok(WithMounts(t, m, func(root string) error {
		big := strings.Repeat("x", 1<<20)
		err := os.WriteFile(filepath.Join(root, "f"), []byte(big), 0o644)
		return errors.Join(err, os.Link(filepath.Join(root, "f"), filepath.Join(root, "g")), os.Symlink("f", filepath.Join(root, "s")))
	}))
	after, err := t.s.Usage(t.ctx, "a")
	t.ok(err)
	if d := after.Inodes - before.Inodes; d != 2 {
		t.Errorf("%d inodes more, want 2", d)
	}
	if d := after.Bytes - before.Bytes; d != 1<<20 {
		t.Errorf("%d bytes more, want 1 MiB", d)
	}
	if d := after.Size - before.Size; d < 1<<20 || d > 1<<20+16<<10 {
		t.Errorf("%d bytes of disk more, want 1 MiB", d)
	}
	t.ok(t.s.Commit(t.ctx, "1", "a"))
	if u, err := t.s.Usage(t.ctx, "1"); err != nil || u.Bytes != after.Bytes || u.Inodes != after.Inodes {
		t.Errorf("usage of the committed one = %+v, %v; want %+v", u, err, after)
	}
	t.prepare("b", "1")
	if u, err := t.s.Usage(t.ctx, "b"); err != nil || u.Bytes != 0 {
		t.Errorf("usage of a new child = %+v, %v", u, err)
	}
	given := snapshot.Usage{Inodes: 7, Size: 8, Bytes: 9}
	t.ok(t.s.Commit(t.ctx, "2", "b", snapshot.WithUsage(given)))
	if u, err := t.s.Usage(t.ctx, "2"); err != nil || u != given {
		t.Errorf("usage = %+v, %v; want the given one", u, err)
	}
	_, err = t.s.Usage(t.ctx, "nobody")
	wantClass(t, "Usage", err, errdefs.NotFound)
}

func (t *snapshotTest) rebase() {
	// The upper layers are there before the base is.
	t.prepare("c", "", "write c 3")
	t.prepare("b", "", "write b 2", "mkdir d", "write d/b 2")
	t.prepare("a", "", "write a 1", "mkdir d", "write d/a 1")
	t.ok(t.s.Commit(t.ctx, "1", "a"))
	err := t.s.Commit(t.ctx, "2", "b", snapshot.WithParent("nobody"))
	wantClass(t, "a parent that is not there", err, errdefs.NotFound)
	t.ok(t.s.Commit(t.ctx, "2", "b", snapshot.WithParent("1")))
	t.ok(t.s.Commit(t.ctx, "3", "c", snapshot.WithParent("2")))
	t.wantLayer("3", "a=1", "b=2", "c=3", "d/", "d/a=1", "d/b=2")
	wantClass(t, "remove a parent", t.s.Remove(t.ctx, "1"), errdefs.Conflict)
	t.prepare("x", "3")
	wantClass(t, "another parent", t.s.Commit(t.ctx, "4", "x", snapshot.WithParent("1")), errdefs.Invalid)
	t.ok(t.s.Commit(t.ctx, "4", "x", snapshot.WithParent("3")))
	t.prepare("y", "")
	t.prepare("z", "")
	wantClass(t, "an active parent", t.s.Commit(t.ctx, "5", "y", snapshot.WithParent("z")), errdefs.Invalid)
}

func (t *snapshotTest) deep() {
	const n = 128
	parent := ""
	var want []string
	for i := range n {
		name := fmt.Sprintf("layer-with-a-name-as-long-as-a-digest-%064d", i)
		t.layer(name, parent, fmt.Sprintf("write f%d %d", i, i), fmt.Sprintf("write same %d", i))
		want = append(want, fmt.Sprintf("f%d=%d", i, i))
		parent = name
	}
	t.prepare("top", parent, "write top 1", "rm f0")
	t.want("top", append(want[1:], fmt.Sprintf("same=%d", n-1), "top=1")...)
}

func (t *snapshotTest) rootMode() {
	t.layer("1", "", "chmod 1751 .", "chown .")
	t.layer("2", "1", "write f 1")
	t.prepare("a", "2")
	m, err := t.s.Mounts(t.ctx, "a")
	t.ok(err)
	t.ok(WithMounts(t, m, func(root string) error {
		var st unix.Stat_t
		err := unix.Stat(root, &st)
		if st.Mode&0o7777 != 0o1751 || st.Uid != 5 || st.Gid != 6 {
			t.Errorf("root has mode %o, owner %d:%d", st.Mode&0o7777, st.Uid, st.Gid)
		}
		return err
	}))
}

func (t *snapshotTest) remake() {
	t.layer("1", "", "mkdir d", "write d/old 1")
	t.layer("2", "1", "rm d", "mkdir d", "write d/new 2")
	t.layer("3", "2", "write d/more 3")
	t.wantLayer("3", "d/", "d/new=2", "d/more=3")
}

func (t *snapshotTest) rename() {
	t.layer("1", "", "mkdir d/e", "write d/e/f 1")
	t.layer("2", "1", "mvdir d n")
	t.wantLayer("2", "n/", "n/e/", "n/e/f=1")
	t.layer("3", "2", "mkdir d", "write d/g 3")
	t.wantLayer("3", "n/", "n/e/", "n/e/f=1", "d/", "d/g=3")
}

func (t *snapshotTest) hardlinks() {
	t.layer("1", "", "write a 1", "ln a b")
	t.layer("2", "1", "ln a c")
	t.wantLayer("2", "a=1", "b=1", "c=1")
	// To write to one name of a file of a layer below says nothing of the
	// others, on overlayfs; so it is removed first.
	t.layer("3", "2", "rm c", "write c 3", "rm b")
	t.wantLayer("3", "a=1", "c=3")
}

func (t *snapshotTest) replace() {
	t.layer("1", "", "write a 1", "write b 1", "mkdir d", "write d/x 1")
	t.layer("2", "1", "mv a b")
	t.wantLayer("2", "b=1", "d/", "d/x=1")
	t.layer("3", "2", "rm d", "write d file")
	t.wantLayer("3", "b=1", "d=file")
	t.layer("4", "3", "rm d", "mkdir d")
	t.wantLayer("4", "b=1", "d/")
}

func (t *snapshotTest) siblings() {
	t.layer("1", "", "write a 1")
	t.prepare("x", "1", "write a x")
	t.prepare("y", "1", "rm a", "write own y")
	t.want("x", "a=x")
	t.want("y", "own=y")
	t.prepare("z", "1")
	t.want("z", "a=1")
}

func (t *snapshotTest) parallel() {
	t.layer("1", "", "write a 1")
	var wg sync.WaitGroup
	won := make(chan int, 32)
	for i := range 32 {
		wg.Go(func() {
			key := fmt.Sprint("c", i)
			_, err := t.s.Prepare(t.ctx, key, "1")
			if err == nil {
				_, err = t.s.Mounts(t.ctx, key)
			}
			if err == nil && t.s.Commit(t.ctx, "the one", key) == nil {
				won <- i
			} else if err == nil {
				err = t.s.Remove(t.ctx, key)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(won) != 1 {
		t.Errorf("%d commits to one name succeeded", len(won))
	}
}

func (t *snapshotTest) walk() {
	for _, k := range []string{"b", "a", "c"} {
		t.prepare(k, "")
	}
	t.ok(t.s.Commit(t.ctx, "0", "b"))
	var got []string
	t.ok(t.s.Walk(t.ctx, func(ctx context.Context, i snapshot.Info) error {
		got = append(got, i.Name+" "+i.Kind.String())
		if i.Kind == snapshot.Active {
			return t.s.Remove(ctx, i.Name) // a collector removes as it walks
		}
		return nil
	}))
	if want := []string{"0 committed", "a active", "c active"}; !slices.Equal(got, want) {
		t.Errorf("Walk = %v, want %v", got, want)
	}
	boom := errors.New("boom")
	if err := t.s.Walk(t.ctx, func(context.Context, snapshot.Info) error { return boom }); !errors.Is(err, boom) {
		t.Errorf("Walk with a failing function = %v", err)
	}
}

func (t *snapshotTest) failedCommit() {
	t.layer("1", "")
	t.prepare("a", "", "write f 1")
	wantClass(t, "commit", t.s.Commit(t.ctx, "1", "a"), errdefs.Conflict)
	wantClass(t, "commit", t.s.Commit(t.ctx, "2", "a", snapshot.WithParent("nobody")), errdefs.NotFound)
	i, err := t.s.Stat(t.ctx, "a")
	if err != nil || i.Kind != snapshot.Active || i.Parent != "" {
		t.Errorf("Stat = %+v, %v", i, err)
	}
	t.change("a", "write g 2")
	t.ok(t.s.Commit(t.ctx, "2", "a", snapshot.WithParent("1")))
	t.wantLayer("2", "f=1", "g=2")
}

func (t *snapshotTest) reuse() {
	t.layer("1", "", "write a 1")
	for range 3 {
		t.prepare("c", "1", "write own 1", "rm a")
		t.want("c", "own=1")
		t.ok(t.s.Remove(t.ctx, "c"))
	}
	t.prepare("c", "1")
	t.want("c", "a=1")
	t.ok(t.s.Commit(t.ctx, "2", "c"))
	t.prepare("c", "2")
}

func (t *snapshotTest) missingParent() {
	wantClass(t, "Prepare", second(t.s.Prepare(t.ctx, "a", "nobody")), errdefs.NotFound)
	wantClass(t, "View", second(t.s.View(t.ctx, "a", "nobody")), errdefs.NotFound)
	_, err := t.s.Stat(t.ctx, "a")
	wantClass(t, "Stat", err, errdefs.NotFound)
	_, err = t.s.Mounts(t.ctx, "a")
	wantClass(t, "Mounts", err, errdefs.NotFound)
	wantClass(t, "Commit", t.s.Commit(t.ctx, "b", "a"), errdefs.NotFound)
	wantClass(t, "Remove", t.s.Remove(t.ctx, "a"), errdefs.NotFound)
}

func (t *snapshotTest) emptyView() {
	_, err := t.s.View(t.ctx, "v", "")
	t.ok(err)
	t.want("v")
}

func (t *snapshotTest) chown() {
	t.layer("1", "", "write a data", "chmod 4755 a")
	t.layer("2", "1", "chown a", "chmod 640 a")
	t.wantLayer("2", "a=data")
	_, err := t.s.View(t.ctx, "v", "2")
	t.ok(err)
	m, err := t.s.Mounts(t.ctx, "v")
	t.ok(err)
	t.ok(WithMounts(t, m, func(root string) error {
		var st unix.Stat_t
		err := unix.Stat(filepath.Join(root, "a"), &st)
		if st.Mode&0o7777 != 0o640 || st.Uid != 5 || st.Size != 4 {
			t.Errorf("mode %o, owner %d, size %d", st.Mode&0o7777, st.Uid, st.Size)
		}
		return err
	}))
}
