package vmimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"dhow/internal/durable"
)

// Options say what to build. Paths may be relative.
type Options struct {
	Arch    string // amd64, arm64
	Version string // of dhow; goes into the manifest
	Out     string // directory of the outputs; made
	Cache   string // directory of packages and intermediate files; made
	Module  string // directory of the Go module with the guest's programs
	Refresh bool   // resolve packages anew even if the cache has them
	Log     io.Writer

	// Programs replaces guest programs (dhow-init, dhow-agent, dhow-enter) by
	// ready files, for tests. All that it does not name are built.
	Programs map[string]string
}

// Outputs beside those in the manifest.
const (
	manifestName = "manifest.json"
	sbomName     = "sbom.spdx.json"
	stampName    = ".stamp"
)

// Build brings the image in o.Out up to date and returns its manifest. An
// image that was built of the same inputs is left alone.
func Build(ctx context.Context, o Options) (Manifest, error) {
	if o.Arch != "amd64" && o.Arch != "arm64" {
		return Manifest{}, fmt.Errorf("architecture %q: want amd64 or arm64", o.Arch)
	}
	if o.Log == nil {
		o.Log = io.Discard
	}
	b := &build{Options: o, apt: &apt{dir: filepath.Join(o.Cache, o.Arch), arch: o.Arch, log: o.Log}}
	for _, d := range []string{o.Out, o.Cache} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return Manifest{}, err
		}
	}
	if err := b.inputs(ctx); err != nil {
		return Manifest{}, err
	}
	key, err := b.key()
	if err != nil {
		return Manifest{}, err
	}
	stamp := filepath.Join(o.Out, stampName)
	if old, err := os.ReadFile(stamp); err == nil && string(old) == key {
		if m, err := loadManifest(o.Out); err == nil {
			return m, nil
		}
	}
	if err := os.Remove(stamp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return Manifest{}, err
	}
	for _, step := range []func(context.Context) error{
		b.unpack, b.kernel, b.initrd, b.root, b.busybox, b.looseModules, b.manifest,
	} {
		if err := step(ctx); err != nil {
			return Manifest{}, err
		}
	}
	return b.made, durable.WriteFile(stamp, []byte(key), 0o644)
}

// build is one run: what its steps hand on.
type build struct {
	Options
	apt      *apt
	packages []Package
	programs map[string]string // name → file

	kernelFiles tree // of the kernel package
	files       tree // of all other packages
	version     string
	modules     map[string]module
	builtin     map[string]bool
	hello       []byte
	bin         []byte // busybox
	made        Manifest
}

// inputs resolves packages and builds the guest's programs.
func (b *build) inputs(ctx context.Context) error {
	names := append([]string{"linux-image-cloud-" + b.Arch}, rootPackages...)
	var err error
	if b.packages, err = b.apt.packages(ctx, names, b.Refresh); err != nil {
		return fmt.Errorf("packages of the %s image: %w", b.Arch, err)
	}
	b.programs, err = buildGuest(ctx, b.Arch, filepath.Join(b.Cache, b.Arch, "bin"), b.Module, b.Version, b.Programs)
	return err
}

// key names everything that the image is made of, this program included.
func (b *build) key() (string, error) {
	var s strings.Builder
	fmt.Fprintf(&s, "%s %s\n", b.Arch, b.Version)
	for _, p := range b.packages {
		fmt.Fprintf(&s, "%s %s\n", p.Name, p.SHA256)
	}
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	files := map[string]string{"builder": self}
	for n, f := range b.programs {
		files[n] = f
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		f, err := digestFile(files[n])
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&s, "%s %s\n", n, f.SHA256)
	}
	return digest([]byte(s.String())), nil
}

// unpack reads what is needed of the packages.
func (b *build) unpack(ctx context.Context) error {
	b.files = tree{}
	for _, p := range b.packages {
		if err := b.apt.verify(p); err != nil {
			return err
		}
		if strings.HasPrefix(p.Name, "linux-image-") {
			t, err := readDeb(ctx, b.apt.file(p), func(name string) bool {
				return strings.HasPrefix(name, "boot/vmlinuz-") || strings.HasPrefix(name, "lib/modules/")
			})
			if err != nil {
				return err
			}
			b.kernelFiles = t
			continue
		}
		t, err := readDeb(ctx, b.apt.file(p), func(name string) bool {
			return !strings.HasPrefix(name, "usr/share/") || strings.HasPrefix(name, "usr/share/ca-certificates/") ||
				name == "usr/share/doc/"+p.Name+"/copyright"
		})
		if err != nil {
			return err
		}
		for n, f := range t {
			b.files[n] = f
		}
	}
	return nil
}

// kernel finds the kernel and describes its modules.
func (b *build) kernel(context.Context) error {
	var image []byte
	for n, f := range b.kernelFiles {
		if v, ok := strings.CutPrefix(n, "boot/vmlinuz-"); ok {
			b.version, image = v, f.data
		}
	}
	if image == nil {
		return errors.New("the kernel package holds no kernel")
	}
	if err := checkKernel(b.Arch, image); err != nil {
		return err
	}
	b.modules, b.builtin = map[string]module{}, map[string]bool{}
	dir := "lib/modules/" + b.version + "/"
	for l := range strings.Lines(string(b.kernelFiles[dir+"modules.builtin"].data)) {
		b.builtin[moduleName(strings.TrimSpace(l))] = true
	}
	for n, f := range b.kernelFiles {
		if !strings.HasSuffix(n, ".ko") {
			continue
		}
		m, err := parseModule(strings.TrimPrefix(n, dir), f.data)
		if err != nil {
			return err
		}
		b.modules[m.name] = m
	}
	return b.write("kernel", image)
}

// initrd writes the initramfs.
func (b *build) initrd(context.Context) error {
	t := tree{}
	t.dir(0o755, "dev", "proc", "sys", "root")
	init, err := os.ReadFile(b.programs["dhow-init"])
	if err != nil {
		return err
	}
	t.file("init", 0o755, init)
	mods, err := closure(b.modules, b.builtin, earlyModules)
	if err != nil {
		return err
	}
	if err := addModules(t, b.version, mods); err != nil {
		return err
	}
	var out bytes.Buffer
	if err := t.writeCPIO(&out); err != nil {
		return err
	}
	return b.write("initrd", out.Bytes())
}

// root writes the root file system.
func (b *build) root(ctx context.Context) error {
	t := skeleton()
	for name, file := range b.programs {
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		t.file("sbin/"+name, 0o755, data)
	}
	for _, name := range rootPrograms {
		if err := addProgram(t, b.files, name); err != nil {
			return err
		}
	}
	if _, err := addFile(t, b.files, "etc/mke2fs.conf"); err != nil {
		return err
	}
	ca, err := certificates(b.files)
	if err != nil {
		return err
	}
	t.file(caBundle, 0o644, ca)
	var names []string
	for _, g := range rootModules {
		names = append(names, g...)
	}
	mods, err := closure(b.modules, b.builtin, names)
	if err != nil {
		return err
	}
	if err := addModules(t, b.version, mods); err != nil {
		return err
	}
	for _, p := range b.packages { // their licences ask for it
		n := "usr/share/doc/" + p.Name + "/copyright"
		if f, ok := b.files[n]; ok && f.data != nil {
			t.file(n, 0o644, f.data)
		}
	}
	if err := b.helloImage(); err != nil {
		return err
	}
	t.file(helloFile, 0o644, b.hello)
	tmp := filepath.Join(b.Cache, b.Arch, "root.erofs.tmp")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := makeErofs(ctx, t, filepath.Join(b.Cache, b.Arch), tmp); err != nil {
		return err
	}
	data, err := os.ReadFile(tmp)
	if err != nil {
		return err
	}
	if err := b.write("root.erofs", data); err != nil {
		return err
	}
	return os.Remove(tmp)
}

// helloImage packs the embedded container image.
func (b *build) helloImage() error {
	f, ok := b.files["bin/busybox"]
	if !ok {
		return errors.New("the package busybox-static holds no bin/busybox")
	}
	b.bin = f.data
	var version string
	for _, p := range b.packages {
		if p.Name == "busybox-static" {
			version = p.Version
		}
	}
	var err error
	b.hello, err = helloImage(b.Arch, f.data, version, filepath.Join(b.Cache, b.Arch))
	return err
}

// busybox writes the binary beside the image, with its licence.
func (b *build) busybox(context.Context) error {
	if err := durable.WriteFile(filepath.Join(b.Out, "busybox"), b.bin, 0o755); err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(b.Out, "busybox.copyright"), b.files["usr/share/doc/busybox-static/copyright"].data, 0o644)
}

// looseModules writes the modules of the virtio devices and of vsock as single
// files, with their load order in modules.order.
func (b *build) looseModules(context.Context) error {
	mods, err := closure(b.modules, b.builtin, []string{"virtio_pci", "virtio_blk", "virtio_net", "virtio_console", "vmw_vsock_virtio_transport"})
	if err != nil {
		return err
	}
	by := map[string]module{}
	for _, m := range mods {
		by[m.name] = m
	}
	dir := filepath.Join(b.Out, "modules")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var order strings.Builder
	seen := map[string]bool{}
	for _, m := range mods {
		before, err := loadOrder(by, m)
		if err != nil {
			return err
		}
		for _, x := range append(before, m) {
			if seen[x.name] {
				continue
			}
			seen[x.name] = true
			order.WriteString(path.Base(x.file) + "\n")
			if err := durable.WriteFile(filepath.Join(dir, path.Base(x.file)), x.data, 0o644); err != nil {
				return err
			}
		}
	}
	return durable.WriteFile(filepath.Join(dir, "modules.order"), []byte(order.String()), 0o644)
}

// manifest writes the manifest and the SBOM.
func (b *build) manifest(context.Context) error {
	b.made.Version, b.made.Arch, b.made.KernelVersion, b.made.Cmdline = b.Version, b.Arch, b.version, cmdline(b.Arch)
	for _, p := range b.packages {
		b.made.Packages = append(b.made.Packages, ManifestPackage{p.Name, p.Version})
	}
	s, err := sbom(b.made, b.packages)
	if err != nil {
		return err
	}
	if err := durable.WriteFile(filepath.Join(b.Out, sbomName), s, 0o644); err != nil {
		return err
	}
	m, err := marshal(b.made)
	if err != nil {
		return err
	}
	return durable.WriteFile(filepath.Join(b.Out, manifestName), m, 0o644)
}

// write writes one file of the image and enters it into the manifest.
func (b *build) write(name string, data []byte) error {
	if b.made.Files == nil {
		b.made.Files = map[string]File{}
	}
	b.made.Files[name] = File{SHA256: digest(data), Size: int64(len(data))}
	return durable.WriteFile(filepath.Join(b.Out, name), data, 0o644)
}
