package vmimage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// guestPrograms are the guest's own programs: name below /sbin → package.
var guestPrograms = map[string]string{
	"dhow-init":  "dhow/cmd/dhow-init",
	"dhow-agent": "dhow/cmd/dhow-agent",
	"dhow-enter": "dhow/cmd/dhow-enter",
}

// buildGuest builds the guest's programs that given does not hold (name →
// file) into dir, and returns all of them. They are told dhow's version ("" =
// what the sources say), and no more: a commit in them would make a new image of
// sources that did not change.
func buildGuest(ctx context.Context, arch, dir, module, version string, given map[string]string) (map[string]string, error) {
	out := map[string]string{}
	var pkgs []string
	for name, pkg := range guestPrograms {
		if f := given[name]; f != "" {
			out[name] = f
			continue
		}
		out[name] = filepath.Join(dir, name)
		pkgs = append(pkgs, pkg)
	}
	if len(pkgs) == 0 {
		return out, nil
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(abs, 0o755); err != nil {
		return nil, err
	}
	ldflags := "-s -w -buildid="
	if version != "" {
		if strings.ContainsAny(version, "'\" \t\n") {
			return nil, fmt.Errorf("version %q: quotes and spaces cannot be in it", version)
		}
		ldflags += " -X dhow/internal/version.Version=" + version
	}
	// One call for all: the go command's own start is what an unchanged build
	// pays. No build ID and no VCS stamp: the same sources give the same bytes.
	cmd := exec.CommandContext(ctx, "go", append([]string{
		"build", "-trimpath", "-buildvcs=false", "-ldflags", ldflags, "-o", abs + string(filepath.Separator),
	}, pkgs...)...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return nil, errors.New("go is missing: see https://go.dev/doc/install")
		}
		return nil, fmt.Errorf("build the guest's programs for %s: %w\n%s", arch, err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}
