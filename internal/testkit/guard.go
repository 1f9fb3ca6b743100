package testkit

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"
)

// Kernel marks a test of the kernel level: it needs Linux and root, and works
// in namespaces of its own. Where it cannot run it is skipped, with the remedy,
// or fails if CI asks for all tests (CI_REQUIRE_KERNEL=1).
func Kernel(t testing.TB) {
	t.Helper()
	if runtime.GOOS != "linux" || os.Geteuid() != 0 {
		missing(t, "CI_REQUIRE_KERNEL", "this test needs root on Linux: run `sudo make test-kernel`")
	}
}

// VMFiles is what a test of the VM level works with.
type VMFiles struct {
	Image      string // directory of the VM image for this computer's architecture
	ImageARM64 string // the same for arm64
	Bin        string // directory of dhow and dhowd
}

// VM marks a test of the VM level: it boots the image that `make vmimage` built.
// Where it cannot run it is skipped, with the remedy, or fails if CI asks for
// all tests (CI_REQUIRE_VM=1).
func VM(t testing.TB) VMFiles {
	t.Helper()
	if os.Getenv("DHOW_TEST_VM") != "1" {
		missing(t, "CI_REQUIRE_VM", "this test boots the VM image: run `make test-vm`")
	}
	f := VMFiles{Image: os.Getenv("DHOW_TEST_IMAGE"), ImageARM64: os.Getenv("DHOW_TEST_IMAGE_ARM64"), Bin: os.Getenv("DHOW_TEST_BIN")}
	for _, name := range []string{filepath.Join(f.Image, "manifest.json"), filepath.Join(f.Bin, "dhowd")} {
		if _, err := os.Stat(name); err != nil {
			t.Fatalf("%v: run this test by `make test-vm`, which builds what it needs", err)
		}
	}
	return f
}

// Need marks a test of any level that wants a program or file of the system: it
// is skipped with the remedy where err says that it is not there, or fails if
// CI asks for all tests.
func Need(t testing.TB, err error, remedy string) {
	t.Helper()
	if err != nil {
		missing(t, "CI_REQUIRE_KERNEL", err.Error()+": "+remedy)
	}
}

func missing(t testing.TB, require, remedy string) {
	t.Helper()
	// `go test ./...` of the unit level runs in CI too, and there skips them.
	if os.Getenv(require) == "1" {
		t.Fatal(remedy)
	}
	t.Skip(remedy)
}
