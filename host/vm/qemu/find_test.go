package qemu

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"dhow/internal/errdefs"
)

func TestInstallCommand(t *testing.T) {
	for _, c := range []struct{ release, arch, want string }{
		{"ID=debian\nVERSION_ID=12\n", "amd64", "apt-get install qemu-system-x86"},
		{"NAME=x\nID=ubuntu\nID_LIKE=debian\n", "arm64", "apt-get install qemu-system-arm"},
		{"ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", "amd64", "apt-get install qemu-system-x86"},
		{"ID=fedora\n", "amd64", "dnf install qemu-system-x86-core"},
		{"ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", "amd64", "dnf install qemu-kvm"},
		{"ID=arch\n", "amd64", "pacman -S qemu-system-x86"},
		{"ID=alpine\n", "amd64", "apk add qemu-system-x86_64"},
		{"ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", "arm64", "zypper install qemu-arm"},
		{"", "amd64", "your system's package manager (package qemu-system or qemu)"},
	} {
		if got := installCommand(c.arch, c.release); got != c.want {
			t.Errorf("%q, %s: %q, want %q", c.release, c.arch, got, c.want)
		}
	}
}

func TestFindSaysHowToInstall(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := find("amd64", "no-such-qemu")
	if !errdefs.Is(err, errdefs.Unavailable) || !strings.Contains(err.Error(), "install it with: ") {
		t.Errorf("find: %v", err)
	}
	if _, err := find("mips", ""); !errdefs.Is(err, errdefs.Invalid) {
		t.Errorf("find for mips: %v", err)
	}
}

func TestExplainNamesAnOldVersion(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell script")
	}
	cause := errors.New("Invalid parameter 'stream'")
	for version, sentence := range map[string]string{
		"QEMU emulator version 6.2.0 (Debian 1:6.2)": "is version 6.2; dhow needs QEMU 7.2 or later",
		"QEMU emulator version 10.0.2":               "",
		"QEMU emulator version 7.2.22":               "",
		"nonsense":                                   "",
	} {
		script := filepath.Join(t.TempDir(), "qemu")
		if err := os.WriteFile(script, []byte("#!/bin/sh\necho '"+version+"'\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		err := explain(t.Context(), script, cause)
		if !errors.Is(err, cause) {
			t.Errorf("%s: the cause is lost: %v", version, err)
		}
		if !strings.Contains(err.Error(), sentence) || (sentence == "" && err.Error() != cause.Error()) {
			t.Errorf("%s: %v, want %q", version, err, sentence)
		}
	}
	if err := explain(t.Context(), filepath.Join(t.TempDir(), "none"), cause); !errdefs.Is(err, errdefs.Unavailable) {
		t.Errorf("a QEMU that does not run: %v", err)
	}
}
