package vmimage

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"dhow/internal/durable"
)

// A Package is one Debian package as resolved.
type Package struct {
	Name          string `json:"name"`
	Version       string `json:"version"`
	Architecture  string `json:"architecture"`
	Source        string `json:"source"`         // source package
	SourceVersion string `json:"source_version"` // its version
	SHA256        string `json:"sha256"`         // of the .deb, hex
	Size          int64  `json:"size"`           // of the .deb, bytes
	Filename      string `json:"filename"`       // below the mirror
	depends       string
}

// Suite is the Debian release that the image is made of.
const Suite = "bookworm"

const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// apt runs apt with a configuration of its own below dir: own state, own lists,
// no installed packages, one architecture. Proxies and credentials are the
// system's; signatures are checked.
type apt struct {
	dir  string // private directory
	arch string // Debian's name
	log  io.Writer
}

func (a *apt) conf() string  { return filepath.Join(a.dir, "apt.conf") }
func (a *apt) after() string { return filepath.Join(a.dir, "after.conf") }
func (a *apt) debs() string  { return filepath.Join(a.dir, "debs") }
func (a *apt) lock() string  { return filepath.Join(a.dir, "packages.json") }

// prepare writes the configuration.
func (a *apt) prepare() error {
	if _, err := os.Stat(keyring); err != nil {
		return fmt.Errorf("the archive keys of Debian are missing (%s): sudo apt-get install debian-archive-keyring", keyring)
	}
	dir, err := filepath.Abs(a.dir)
	if err != nil {
		return err
	}
	for _, d := range []string{"state/lists/partial", "cache/archives/partial", "debs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	main, security, err := mirrors()
	if err != nil {
		return err
	}
	for name, text := range map[string]string{
		"status": "",
		"sources.list": fmt.Sprintf("deb [signed-by=%[1]s] %[2]s %[3]s main\ndeb [signed-by=%[1]s] %[4]s %[3]s-security main\n",
			keyring, main, Suite, security),
		"apt.conf": fmt.Sprintf(`APT::Architecture "%[2]s";
APT::Architectures { "%[2]s"; };
Dir::State "%[1]s/state";
Dir::State::status "%[1]s/status";
Dir::Cache "%[1]s/cache";
Dir::Etc::sourcelist "%[1]s/sources.list";
Dir::Etc::sourceparts "-";
Dir::Etc::preferencesparts "-";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
`, dir, a.arch),
		// Read after the system's own configuration: its hooks are about the
		// system's packages, its sandbox user cannot write to our directory.
		"after.conf": `#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
APT::Sandbox::User "root";
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// run runs one of apt's programs in dir and returns its standard output.
func (a *apt) run(ctx context.Context, dir, name string, args ...string) ([]byte, error) {
	conf, err := filepath.Abs(a.conf())
	if err != nil {
		return nil, err
	}
	after, err := filepath.Abs(a.after())
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, name, append([]string{"-c", after}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "APT_CONFIG="+conf, "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive")
	var out, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errors.New("apt is missing: the image is built of Debian packages, on Debian or Ubuntu")
		}
		return nil, fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out.Bytes(), nil
}

// packages returns the named packages (a virtual name for the kernel is
// replaced by the real one), each with its .deb in the cache. They are resolved
// anew if refresh is set or the cache does not have them.
func (a *apt) packages(ctx context.Context, names []string, refresh bool) ([]Package, error) {
	if !refresh {
		if pkgs, ok := a.cached(names); ok {
			return pkgs, nil
		}
	}
	if err := a.prepare(); err != nil {
		return nil, err
	}
	fmt.Fprintf(a.log, "vmimage: resolving Debian packages for %s\n", a.arch)
	if _, err := a.run(ctx, a.dir, "apt-get", "-q", "update", "--error-on=any"); err != nil {
		return nil, err
	}
	names = append([]string(nil), names...)
	for i, n := range names {
		if strings.HasPrefix(n, "linux-image-") {
			real, err := a.realKernel(ctx, n)
			if err != nil {
				return nil, err
			}
			names[i] = real
		}
	}
	pkgs, err := a.show(ctx, names)
	if err != nil {
		return nil, err
	}
	for _, p := range pkgs {
		if a.verify(p) == nil {
			continue
		}
		fmt.Fprintf(a.log, "vmimage: fetching %s %s (%d KiB)\n", p.Name, p.Version, p.Size>>10)
		if _, err := a.run(ctx, a.debs(), "apt-get", "-q", "download", p.Name+"="+p.Version); err != nil {
			return nil, err
		}
		if err := a.collect(p); err != nil {
			return nil, err
		}
	}
	data, err := json.MarshalIndent(pkgs, "", "  ")
	if err != nil {
		return nil, err
	}
	return pkgs, durable.WriteFile(a.lock(), append(data, '\n'), 0o644)
}

// cached returns what the last resolution gave, if it covers names and every
// file is there.
func (a *apt) cached(names []string) ([]Package, bool) {
	data, err := os.ReadFile(a.lock())
	var pkgs []Package
	if err != nil || json.Unmarshal(data, &pkgs) != nil || len(pkgs) != len(names) {
		return nil, false
	}
	for i, p := range pkgs {
		kernel := strings.HasPrefix(names[i], "linux-image-") && strings.HasPrefix(p.Name, "linux-image-")
		if p.Name != names[i] && !kernel {
			return nil, false
		}
		// By size here: a build that needs the content checks the digest.
		if st, err := os.Stat(a.file(p)); err != nil || st.Size() != p.Size {
			return nil, false
		}
	}
	return pkgs, true
}

// file is where the package's .deb is kept.
func (a *apt) file(p Package) string { return filepath.Join(a.debs(), p.SHA256+".deb") }

// verify checks the digest of the package's .deb.
func (a *apt) verify(p Package) error {
	f, err := os.Open(a.file(p))
	if err != nil {
		return err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return err
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != p.SHA256 {
		return fmt.Errorf("%s %s: SHA-256 is %s, want %s: delete %s", p.Name, p.Version, got, p.SHA256, a.file(p))
	}
	return nil
}

// collect renames what apt-get download left (its name is apt's choice) to
// where it is kept, and verifies it.
func (a *apt) collect(p Package) error {
	found, err := filepath.Glob(filepath.Join(a.debs(), p.Name+"_*.deb"))
	if err != nil {
		return err
	}
	if len(found) != 1 {
		return fmt.Errorf("apt-get download %s left %d files", p.Name, len(found))
	}
	if err := os.Rename(found[0], a.file(p)); err != nil {
		return err
	}
	return a.verify(p)
}

// realKernel is the package that the meta package depends on.
func (a *apt) realKernel(ctx context.Context, meta string) (string, error) {
	pkgs, err := a.show(ctx, []string{meta})
	if err != nil {
		return "", err
	}
	for d := range strings.SplitSeq(pkgs[0].depends, ",") {
		if name, _, _ := strings.Cut(strings.TrimSpace(d), " "); strings.HasPrefix(name, "linux-image-") {
			return name, nil
		}
	}
	return "", fmt.Errorf("%s depends on no kernel package: %q", meta, pkgs[0].depends)
}

// show returns the candidates of the named packages, in their order.
func (a *apt) show(ctx context.Context, names []string) ([]Package, error) {
	out, err := a.run(ctx, a.dir, "apt-cache", append([]string{"show", "--no-all-versions"}, names...)...)
	if err != nil {
		return nil, err
	}
	by := map[string]Package{}
	for _, p := range parseControl(out) {
		by[p.Name] = p
	}
	pkgs := make([]Package, len(names))
	for i, n := range names {
		p, ok := by[n]
		if !ok || p.SHA256 == "" || p.Size == 0 {
			return nil, fmt.Errorf("no package %s for %s is in Debian %s", n, a.arch, Suite)
		}
		pkgs[i] = p
	}
	return pkgs, nil
}

// parseControl parses paragraphs of a Packages file.
func parseControl(text []byte) []Package {
	var out []Package
	var p Package
	flush := func() {
		if p.Name != "" {
			// Source is left out where it is the same, and has a version only
			// where that differs.
			name, version, _ := strings.Cut(p.Source, " ")
			if p.Source = name; p.Source == "" {
				p.Source = p.Name
			}
			if p.SourceVersion = strings.Trim(version, "()"); p.SourceVersion == "" {
				p.SourceVersion = p.Version
			}
			out = append(out, p)
		}
		p = Package{}
	}
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		line := sc.Text()
		if line == "" {
			flush()
			continue
		}
		k, v, ok := strings.Cut(line, ":")
		if !ok || k == "" || k[0] == ' ' {
			continue
		}
		v = strings.TrimSpace(v)
		switch k {
		case "Package":
			p.Name = v
		case "Version":
			p.Version = v
		case "Architecture":
			p.Architecture = v
		case "Source":
			p.Source = v
		case "SHA256":
			p.SHA256 = v
		case "Size":
			_, _ = fmt.Sscan(v, &p.Size) // 0 is refused by show
		case "Filename":
			p.Filename = v
		case "Depends":
			p.depends = v
		}
	}
	flush()
	return out
}

// MirrorVariable names, in the environment, the URL of a Debian mirror, for a
// system that has none of its own.
const MirrorVariable = "DHOW_DEBIAN_MIRROR"

// mirrors returns the mirrors of Debian and of its security updates: the
// variable's, those of the system's own source lists if it is a Debian, or the
// one that debootstrap brings. A wrong guess fails on the signature.
func mirrors() (main, security string, err error) {
	main = strings.TrimSuffix(os.Getenv(MirrorVariable), "/")
	for _, f := range []string{"/etc/apt/sources.list", "/etc/apt/sources.list.d/debian.sources", "/usr/sbin/debootstrap", "/usr/share/debootstrap/scripts/sid"} {
		text, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			if strings.HasPrefix(line, "#") {
				continue
			}
			for _, w := range strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\n\"'=", r) }) {
				w = strings.TrimSuffix(w, "/")
				switch {
				case !strings.HasPrefix(w, "http://") && !strings.HasPrefix(w, "https://"):
				case main == "" && strings.HasSuffix(w, "/debian"):
					main = w
				case security == "" && strings.HasSuffix(w, "/debian-security"):
					security = w
				}
			}
		}
	}
	if main == "" {
		return "", "", fmt.Errorf("no Debian mirror is known here: set %s to the URL of one", MirrorVariable)
	}
	if security == "" {
		security = main + "-security"
	}
	return main, security, nil
}

// missingTool makes a sentence of the error of a program that is not there.
func missingTool(err error, tool, pkg string) error {
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s is missing: sudo apt-get install %s", tool, pkg)
	}
	return err
}
