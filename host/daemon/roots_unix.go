//go:build unix && !darwin

package daemon

import (
	"context"
	"log/slog"
	"os"
	"strings"
)

// rootPlaces are where distributions keep the roots that somebody added to
// those of the distribution. The image has the well-known ones itself; sending
// all of them would cost the guest's boot 200 KB of JSON to take apart.
var rootPlaces = []string{
	"/usr/local/share/ca-certificates",          // Debian, Ubuntu, Alpine
	"/etc/pki/ca-trust/source/anchors",          // Fedora, RHEL
	"/usr/share/pki/ca-trust-source/anchors",    // the same, from packages
	"/etc/pki/trust/anchors",                    // openSUSE
	"/usr/share/pki/trust/anchors",              // the same, from packages
	"/etc/ca-certificates/trust-source/anchors", // Arch
}

// hostRoots returns, as PEM, the certificates that the host trusts beyond the
// well-known ones; $SSL_CERT_FILE and $SSL_CERT_DIR count as added.
func hostRoots(context.Context, *slog.Logger) []byte {
	places := append([]string(nil), rootPlaces...)
	if f := os.Getenv("SSL_CERT_FILE"); f != "" {
		places = append(places, f)
	}
	for _, d := range strings.Split(os.Getenv("SSL_CERT_DIR"), ":") {
		if d != "" {
			places = append(places, d)
		}
	}
	return certificates(places)
}
