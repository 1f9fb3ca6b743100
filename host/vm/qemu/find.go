package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	"dhow/internal/errdefs"
)

// minVersion is the first QEMU with -netdev stream.
var minVersion = [2]int{7, 2}

// emulator is QEMU's name of a guest architecture.
func emulator(arch string) (string, error) {
	switch arch {
	case "amd64":
		return "qemu-system-x86_64", nil
	case "arm64":
		return "qemu-system-aarch64", nil
	}
	return "", errdefs.New(errdefs.Invalid, "there is no machine of architecture %q", arch)
}

// find returns the path of the QEMU that emulates arch.
func find(arch, binary string) (string, error) {
	name, err := emulator(arch)
	if err != nil {
		return "", err
	}
	candidates := []string{name}
	if arch == runtime.GOARCH {
		// Red Hat's QEMU has only the host's architecture and this name.
		candidates = append(candidates, "qemu-kvm", "/usr/libexec/qemu-kvm")
	}
	if binary != "" {
		candidates = []string{binary}
	}
	for _, c := range candidates {
		if p, err := exec.LookPath(c); err == nil {
			return filepath.Abs(p)
		}
	}
	return "", errdefs.New(errdefs.Unavailable, "QEMU (%s) is not installed; install it with: %s", candidates[0], installCommand(arch, osRelease()))
}

func osRelease() string {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		b, _ = os.ReadFile("/usr/lib/os-release")
	}
	return string(b)
}

// installCommand returns the command that installs QEMU on the distribution
// that release (the text of os-release(5)) names.
func installCommand(arch, release string) string {
	var ids []string
	for line := range strings.Lines(release) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "ID" || key == "ID_LIKE" {
			ids = append(ids, strings.Fields(strings.Trim(value, `"'`))...)
		}
	}
	x86 := arch == "amd64"
	pick := func(a, b string) string {
		if x86 {
			return a
		}
		return b
	}
	for _, id := range ids {
		switch id {
		case "debian", "ubuntu":
			return "apt-get install " + pick("qemu-system-x86", "qemu-system-arm")
		case "rhel", "centos":
			return "dnf install qemu-kvm"
		case "fedora":
			return "dnf install " + pick("qemu-system-x86-core", "qemu-system-aarch64-core")
		case "arch":
			return "pacman -S " + pick("qemu-system-x86", "qemu-system-aarch64")
		case "alpine":
			return "apk add " + pick("qemu-system-x86_64", "qemu-system-aarch64")
		case "suse", "opensuse":
			return "zypper install " + pick("qemu-x86", "qemu-arm")
		}
	}
	return "your system's package manager (package qemu-system or qemu)"
}

// firmware returns the path of qboot, which starts a kernel in a fraction of
// the time that SeaBIOS needs, or "" for QEMU's default.
func firmware(arch, binary string) string {
	if arch != "amd64" {
		return ""
	}
	for _, p := range []string{
		filepath.Join(filepath.Dir(binary), "..", "share", "qemu", "qboot.rom"),
		"/usr/share/qemu/qboot.rom",
		"/usr/share/qboot/bios.bin", // Fedora
	} {
		if info, err := os.Stat(p); err == nil && info.Mode().IsRegular() {
			return p
		}
	}
	return ""
}

var versionPattern = regexp.MustCompile(`version (\d+)\.(\d+)`)

// explain makes a better error of a QEMU that refused to start: one that is
// too old says something about an option that it does not know.
func explain(ctx context.Context, binary string, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, binary, "--version").Output()
	if err != nil {
		return errdefs.Wrap(errdefs.Unavailable, cause, "%s does not run", binary)
	}
	if m := versionPattern.FindSubmatch(out); m != nil {
		major, _ := strconv.Atoi(string(m[1]))
		minor, _ := strconv.Atoi(string(m[2]))
		if tooOld(major, minor) {
			return errdefs.Wrap(errdefs.Unavailable, cause, "%s", oldSentence(binary, fmt.Sprintf("%d.%d", major, minor)))
		}
	}
	return cause
}

func tooOld(major, minor int) bool {
	return major < minVersion[0] || major == minVersion[0] && minor < minVersion[1]
}

func oldSentence(binary, version string) string {
	return fmt.Sprintf("%s is version %s; dhow needs QEMU %d.%d or later", binary, version, minVersion[0], minVersion[1])
}
