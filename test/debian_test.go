//go:build linux

package test

import (
	"archive/tar"
	"fmt"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"dhow/test/fixture"
)

// debianLayers are three layers: Debian's root file system with test/walk in
// it, one that deletes and replaces, and one with all that is hard in a layer.
func debianLayers(t *testing.T) [][]fixture.Entry {
	t.Helper()
	cache, err := filepath.Abs("../.cache/test")
	if err != nil {
		t.Fatal(err)
	}
	base, err := fixture.Debian(cache)
	if err != nil {
		t.Fatal(err)
	}
	base = append(base, fixture.File("usr/local/bin/walk", 0o755, buildStatic(t, "./walk")))

	edit := []fixture.Entry{
		fixture.Whiteout("etc/motd"),                                                    // a file
		fixture.Whiteout("usr/share/doc"),                                               // a directory with all in it
		fixture.File("etc/issue", 0o600, "new\n"),                                       // replaced: other mode, content
		fixture.Dir("etc/apt", 0o700).With(func(h *tar.Header) { h.Uid, h.Gid = 7, 8 }), // only its metadata
		fixture.Dir("usr/share/man", 0o755),                                             // emptied: opaque
		fixture.File("usr/share/man/.wh..wh..opq", 0, ""),
		fixture.File("usr/share/man/README", 0o644, "gone\n"),
		fixture.File("usr/share/info", 0o644, "a directory replaced by a file\n"),
		fixture.File("opt/new/deep/file", 0o640, "below directories that the tar does not name\n"),
		fixture.File("var/lib/dpkg/added", 0o644, "in a directory of the lower layer that this tar does not name\n"),
		fixture.Dir("many", 0o755),
	}
	for i := range 200 {
		edit = append(edit, fixture.File(fmt.Sprintf("many/entry-%03d", i), 0o644, fmt.Sprintln(i)))
	}
	hard := []fixture.Entry{
		fixture.File("many", 0o644, "once a directory of 200 entries\n"),
		fixture.File("opt/a", 0o644, "shared\n"),
		fixture.Link("opt/b", "opt/a"),
		fixture.Link("opt/c", "opt/a"),
		fixture.File("opt/setuid", 0o4755, "#!/bin/sh\n").With(func(h *tar.Header) { h.Uid, h.Gid = 1000, 50 }),
		fixture.File("opt/setgid", 0o2711, "x"),
		fixture.Dir("opt/sticky", 0o1777),
		fixture.File("opt/capable", 0o755, "x").Xattr("security.capability", "\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00"),
		fixture.File("opt/attributed", 0o644, "x").Xattr("user.origin", "a layer").Xattr("trusted.note", "t"),
		fixture.Symlink("opt/dangling", "/nowhere/../at all"),
		fixture.Symlink("opt/out", "../../../../etc/passwd"),
		fixture.File("opt/ünïcode name with spaces", 0o644, ""),
		fixture.File("opt/"+strings.Repeat("n", 255), 0o644, "a name of 255 bytes"),
		{Header: tar.Header{Name: "opt/fifo", Typeflag: tar.TypeFifo, Mode: 0o600}},
		{Header: tar.Header{Name: "opt/null", Typeflag: tar.TypeChar, Mode: 0o666, Devmajor: 1, Devminor: 3}},
	}
	return [][]fixture.Entry{base, edit, hard}
}

// What the runtime puts over the image's own files.
var mountedOver = []string{"/proc", "/sys", "/dev", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/.dockerenv"}

func testDebian(m *machine) {
	layers := debianLayers(m.t)
	img, err := fixture.Image(runtime.GOARCH, []string{"bash"}, layers...)
	if err != nil {
		m.t.Fatal(err)
	}
	reg := fixture.StartRegistry(m.t)
	ref, digest := reg.Push(m.t, "library/debian:three", img)

	start := time.Now()
	out := m.ok("pull", ref)
	m.t.Logf("pull took %v", time.Since(start).Round(time.Millisecond))
	if !strings.Contains(out, "Digest: "+digest) || !strings.Contains(out, "Status: Downloaded newer image for "+ref) {
		m.t.Errorf("pull says:\n%s", out)
	}
	asked := reg.Blobs()
	if out := m.ok("pull", ref); !strings.Contains(out, "Status: Image is up to date for "+ref) || reg.Blobs() != asked {
		m.t.Errorf("second pull asked for %d blobs and says:\n%s", reg.Blobs()-asked, out)
	}

	out = m.ok("run", "--rm", ref, "sh", "-c", `dpkg -l | wc -l; id; cat /proc/self/status | grep -E "Seccomp|CapEff"`)
	lines := strings.Split(out, "\n")
	want := []string{"", "uid=0(root) gid=0(root) groups=0(root)", "CapEff:\t00000000a80425fb", "Seccomp:\t2", "Seccomp_filters:\t1"}
	if len(lines) != len(want) || len(lines[0]) < 2 || strings.Join(lines[1:], "\n") != strings.Join(want[1:], "\n") {
		m.t.Errorf("run says:\n%s\nwant a number of packages and\n%s", out, strings.Join(want[1:], "\n"))
	}

	if inodes := strings.Fields(m.ok("run", "--rm", ref, "stat", "-c", "%i %h", "/opt/a", "/opt/b", "/opt/c")); len(inodes) != 6 ||
		inodes[0] != inodes[2] || inodes[0] != inodes[4] || inodes[1] != "3" {
		m.t.Errorf("hard links: inode and link count %v", inodes)
	}

	got := strings.Split(m.ok(append([]string{"run", "--rm", "--cap-add", "SYS_ADMIN", ref, "walk", "/"}, mountedOver...)...), "\n")
	diff(m.t, got, fixture.Apply(layers...).Lines(mountedOver...))
}

// diff reports the lines that only one list has, at most 40.
func diff(t *testing.T, got, want []string) {
	t.Helper()
	count := map[string]int{}
	for _, l := range want {
		count[l]++
	}
	shown := 0
	report := func(sign, line string) {
		if shown++; shown <= 40 {
			t.Errorf("%s %s", sign, line)
		}
	}
	for _, l := range got {
		if count[l]--; count[l] < 0 {
			report("+", l)
		}
	}
	for _, l := range want {
		if count[l] > 0 {
			report("-", l)
		}
	}
	if shown > 40 {
		t.Errorf("… and %d more", shown-40)
	}
	if len(want) < 1000 {
		t.Errorf("only %d entries were compared", len(want))
	}
}
