package daemon

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
)

// hostRoots returns, as PEM, the certificates in the keychains that users and
// administrators add to; the image has Apple's well-known ones, or their like,
// itself. security(1) is the only way to read them without cgo.
func hostRoots(ctx context.Context, log *slog.Logger) []byte {
	args := []string{"find-certificate", "-a", "-p", "/Library/Keychains/System.keychain"}
	if home, err := os.UserHomeDir(); err == nil {
		args = append(args, filepath.Join(home, "Library/Keychains/login.keychain-db"))
	}
	b, err := exec.CommandContext(ctx, "/usr/bin/security", args...).Output()
	if err != nil {
		log.Warn("cannot read the host's own root certificates", "error", err)
	}
	if len(b) > maxRoots {
		return nil
	}
	return b
}
