package vmimage

import (
	"bytes"
	"encoding/json"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/v1/layout"

	"dhow/internal/testkit"
)

func TestCPIOIsWhatTheKernelReads(t *testing.T) {
	tr := tree{}
	tr.file("init", 0o755, []byte("hello"))
	tr.file("lib/modules/x", 0o644, nil)
	tr.symlink("sbin/modprobe", "dhow-init")
	tr.dir(0o755, "dev")
	var b bytes.Buffer
	if err := tr.writeCPIO(&b); err != nil {
		t.Fatal(err)
	}
	if b.Len()%512 != 0 {
		t.Errorf("%d bytes: a second archive could not follow", b.Len())
	}
	_, err := exec.LookPath("cpio")
	testkit.Need(t, err, "run `make deps`")
	dir := t.TempDir()
	cmd := exec.Command("cpio", "-idm", "--quiet", "--no-absolute-filenames")
	cmd.Dir, cmd.Stdin = dir, &b
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cpio: %v: %s", err, out)
	}
	if got, err := os.ReadFile(filepath.Join(dir, "init")); err != nil || string(got) != "hello" {
		t.Errorf("init: %q %v", got, err)
	}
	st, err := os.Stat(filepath.Join(dir, "init"))
	if err != nil || st.Mode() != 0o755 || st.ModTime().Unix() != 0 {
		t.Errorf("init: %v %v", st, err)
	}
	if got, err := os.Readlink(filepath.Join(dir, "sbin/modprobe")); err != nil || got != "dhow-init" {
		t.Errorf("modprobe: %q %v", got, err)
	}
}

func TestTreeMakesParentsAndModes(t *testing.T) {
	dir := t.TempDir()
	tr := skeleton()
	tr.file("/a/../b/c", 0o600, []byte("x"))
	if err := tr.writeDir(dir); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]fs.FileMode{"tmp": fs.ModeDir | fs.ModeSticky | 0o777, "b": fs.ModeDir | 0o755, "b/c": 0o600, "var/lib/dhow": fs.ModeDir | 0o755} {
		if st, err := os.Lstat(filepath.Join(dir, name)); err != nil || st.Mode() != mode {
			t.Errorf("%s: %v, want mode %v (%v)", name, st, mode, err)
		}
	}
}

func mods(list ...module) map[string]module {
	by := map[string]module{}
	for _, m := range list {
		m.name = moduleName(m.file)
		by[m.name] = m
	}
	return by
}

func TestDepmod(t *testing.T) {
	all := mods(
		module{file: "k/virtio_net.ko", depends: []string{"net_failover"}, aliases: []string{"virtio:d00000001v*"}},
		module{file: "k/net_failover.ko", depends: []string{"failover"}},
		module{file: "k/failover.ko"},
		module{file: "k/nf-log.ko", depends: []string{"core"}, pre: []string{"failover", "nosuch"}, aliases: []string{"nf log", "x"}},
		module{file: "k/unused.ko"},
	)
	list, err := closure(all, map[string]bool{"core": true}, []string{"virtio_net", "nf_log", "core"})
	if err != nil {
		t.Fatal(err)
	}
	dep, alias, err := depmod(list)
	if err != nil {
		t.Fatal(err)
	}
	if want := "k/failover.ko:\nk/net_failover.ko: k/failover.ko\nk/nf-log.ko: k/failover.ko\nk/virtio_net.ko: k/net_failover.ko k/failover.ko\n"; string(dep) != want {
		t.Errorf("modules.dep:\n%swant\n%s", dep, want)
	}
	if want := "# Aliases extracted from modules themselves.\nalias nf log nf_log\nalias x nf_log\nalias virtio:d00000001v* virtio_net\n"; string(alias) != want {
		t.Errorf("modules.alias:\n%s", alias)
	}
	if _, err := closure(all, nil, []string{"nf_log"}); err == nil || !strings.Contains(err.Error(), "core (needed by nf_log)") {
		t.Errorf("a missing module: %v", err)
	}
	loop := mods(module{file: "a.ko", depends: []string{"b"}}, module{file: "b.ko", depends: []string{"a"}})
	if _, _, err := depmod([]module{loop["a"], loop["b"]}); err == nil {
		t.Error("a cycle is accepted")
	}
}

func TestSoftPre(t *testing.T) {
	for in, want := range map[string][]string{
		"pre: a b post: c": {"a", "b"}, "post: c pre: a": {"a"}, "pre: crypto-x": {"crypto-x"}, "": nil, "post: x": nil,
	} {
		if got := softPre(in); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", in, got, want)
		}
	}
}

func TestParseControl(t *testing.T) {
	const text = `Package: libcom-err2
Source: e2fsprogs (1.47.0-2)
Version: 1.47.0-2+b2
Architecture: amd64
Depends: libc6 (>= 2.17)
Description: a library
 Size: 5
Size: 20044
SHA256: aa
Filename: pool/x.deb

Package: busybox-static
Version: 1:1.35.0-4
Size: 7
SHA256: bb
`
	got := parseControl([]byte(text))
	want := []Package{
		{Name: "libcom-err2", Version: "1.47.0-2+b2", Architecture: "amd64", Source: "e2fsprogs", SourceVersion: "1.47.0-2", SHA256: "aa", Size: 20044, Filename: "pool/x.deb", depends: "libc6 (>= 2.17)"},
		{Name: "busybox-static", Version: "1:1.35.0-4", Source: "busybox-static", SourceVersion: "1:1.35.0-4", SHA256: "bb", Size: 7},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func TestCheckKernel(t *testing.T) {
	bz, image, zboot := make([]byte, 0x300), make([]byte, 0x300), make([]byte, 0x300)
	copy(bz[0x202:], "HdrS")
	copy(image[0x38:], "ARMd")
	image[0x10] = 1
	copy(zboot, "MZ\x00\x00zimg")
	for _, c := range []struct {
		arch string
		data []byte
		want string
	}{
		{"amd64", bz, ""}, {"arm64", image, ""}, {"amd64", image, "bzImage"}, {"arm64", bz, "ARMd"}, {"arm64", zboot, "EFI_ZBOOT"},
		{"amd64", nil, "bzImage"}, {"arm64", nil, "ARMd"}, {"riscv64", bz, "want amd64 or arm64"},
	} {
		err := checkKernel(c.arch, c.data)
		if c.want == "" != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.arch, err, c.want)
		}
	}
}

// fakeBusybox has what applets looks for.
func fakeBusybox() []byte {
	var names []string
	for a := 'a'; a <= 'z'; a++ {
		for b := 'a'; b <= 'e'; b++ {
			names = append(names, string(a)+string(b))
		}
	}
	return []byte("ELF junk\x00[\x00[[\x00" + strings.Join(names, "\x00") + "\x00ash: not sorted\x00")
}

func TestApplets(t *testing.T) {
	got, err := applets(fakeBusybox())
	if err != nil || len(got) != 2+26*5 || got[0] != "[" || got[len(got)-1] != "ze" {
		t.Errorf("%d applets, %v", len(got), err)
	}
	if _, err := applets([]byte("nothing")); err == nil {
		t.Error("no list is accepted")
	}
	if _, err := applets([]byte("\x00[\x00[[\x00ar\x00zz\x00")); err == nil {
		t.Error("a short list is accepted")
	}
	if b, err := os.ReadFile("/bin/busybox"); err == nil {
		// The real one knows its own.
		list, err := exec.Command("/bin/busybox", "--list").Output()
		if err != nil {
			t.Skip(err)
		}
		got, err := applets(b)
		if err != nil || strings.Join(got, "\n") != strings.TrimSpace(string(list)) {
			t.Errorf("busybox --list differs (%d found): %v", len(got), err)
		}
	}
}

// The embedded image is an OCI layout that go-containerregistry, which wrote
// it, also validates after it went through the tar archive.
func TestHelloImage(t *testing.T) {
	scratch := t.TempDir()
	raw, err := helloImage("arm64", fakeBusybox(), "1.35", scratch)
	if err != nil {
		t.Fatal(err)
	}
	again, err := helloImage("arm64", fakeBusybox(), "1.35", t.TempDir())
	if err != nil || !bytes.Equal(raw, again) {
		t.Errorf("not reproducible: %v", err)
	}
	if ents, _ := os.ReadDir(scratch); len(ents) != 0 {
		t.Errorf("left in the scratch directory: %v", ents)
	}
	tr, err := readTar(bytes.NewReader(raw), func(string) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := tr.writeDir(dir); err != nil {
		t.Fatal(err)
	}
	idx, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		t.Fatal(err)
	}
	im, err := idx.IndexManifest()
	if err != nil || len(im.Manifests) != 1 {
		t.Fatalf("%+v %v", im, err)
	}
	d := im.Manifests[0]
	if d.Annotations["io.containerd.image.name"] != "docker.io/dhow/hello:latest" || d.Annotations["org.opencontainers.image.ref.name"] != "latest" || d.Platform.Architecture != "arm64" {
		t.Errorf("descriptor %+v", d)
	}
	img, err := idx.Image(d.Digest)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil || cf.Architecture != "arm64" || cf.OS != "linux" || cf.Config.Cmd[0] != "/bin/sh" || len(cf.RootFS.DiffIDs) != 1 {
		t.Errorf("config %+v %v", cf, err)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	files, err := readTar(rc, func(string) bool { return true })
	_, _ = io.Copy(io.Discard, rc)
	if err != nil || files["bin/ab"].link != "busybox" || files["bin/busybox"].mode != 0o755 || files["etc/passwd"].data == nil {
		t.Errorf("layer: %v", err)
	}
}

func TestSBOMNamesEveryPackageAndFile(t *testing.T) {
	m := Manifest{Version: "1", Arch: "amd64", Files: map[string]File{"kernel": {"aa", 1}, "root.erofs": {"bb", 2}}}
	raw, err := sbom(m, []Package{{Name: "libc6", Version: "2.36-9+deb12u14", Architecture: "amd64", Source: "glibc", SourceVersion: "2.36-9+deb12u14", SHA256: "cc"}})
	if err != nil {
		t.Fatal(err)
	}
	var doc spdx
	if err := json.Unmarshal(raw, &doc); err != nil {
		t.Fatal(err)
	}
	ids := map[string]bool{doc.ID: true}
	for _, p := range doc.Packages {
		ids[p.ID] = true
		if p.Declared != "NOASSERTION" || p.Location == "" {
			t.Errorf("%+v", p)
		}
	}
	for _, f := range doc.Files {
		ids[f.ID] = true
	}
	if len(doc.Packages) != 2 || len(doc.Files) != 2 || len(doc.Relationships) != 4 {
		t.Errorf("%d packages, %d files, %d relationships", len(doc.Packages), len(doc.Files), len(doc.Relationships))
	}
	for _, r := range doc.Relationships {
		if !ids[r.From] || !ids[r.To] {
			t.Errorf("%+v names what is not there", r)
		}
	}
	if p := doc.Packages[1]; p.Refs[0].Locator != "pkg:deb/debian/libc6@2.36-9%2Bdeb12u14?arch=amd64&distro=bookworm" || !strings.Contains(p.SourceInfo, "glibc") {
		t.Errorf("%+v", p)
	}
}

func TestMissingToolNamesTheRemedy(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := makeErofs(t.Context(), tree{}, t.TempDir(), filepath.Join(t.TempDir(), "x"))
	if err == nil || err.Error() != "mkfs.erofs is missing: sudo apt-get install erofs-utils" {
		t.Errorf("mkfs.erofs: %v", err)
	}
	a := &apt{dir: t.TempDir(), arch: "amd64", log: io.Discard}
	if _, err := a.run(t.Context(), a.dir, "apt-get", "update"); err == nil || !strings.HasPrefix(err.Error(), "apt is missing") {
		t.Errorf("apt: %v", err)
	}
	if _, err := readDeb(t.Context(), "x.deb", nil); err == nil || !strings.HasPrefix(err.Error(), "dpkg-deb is missing") {
		t.Errorf("dpkg-deb: %v", err)
	}
	if _, err := buildGuest(t.Context(), "amd64", t.TempDir(), ".", "1", nil); err == nil || !strings.HasPrefix(err.Error(), "go is missing") {
		t.Errorf("go: %v", err)
	}
}

func TestBuildRefusesUnknownArchitecture(t *testing.T) {
	if _, err := Build(t.Context(), Options{Arch: "riscv64", Out: t.TempDir(), Cache: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "want amd64 or arm64") {
		t.Errorf("err = %v", err)
	}
}

func TestCmdline(t *testing.T) {
	for _, arch := range []string{"amd64", "arm64"} {
		words := strings.Fields(cmdline(arch))
		seen := map[string]bool{}
		for _, w := range words {
			k, _, _ := strings.Cut(w, "=")
			if seen[k] || k == "console" || k == "mitigations" {
				t.Errorf("%s: %s is twice, or the driver's", arch, w)
			}
			seen[k] = true
		}
	}
}
