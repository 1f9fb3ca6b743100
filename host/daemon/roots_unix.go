//go:build unix && !darwin

package daemon

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
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

// bundles hold the distribution's own roots. Some environments name them in
// $SSL_CERT_FILE, which then says nothing new.
var bundles = map[string]bool{
	"/etc/ssl/certs/ca-certificates.crt": true, "/etc/pki/tls/certs/ca-bundle.crt": true, "/etc/ssl/ca-bundle.pem": true,
	"/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem": true, "/etc/ssl/cert.pem": true,
	"/etc/ssl/certs": true, "/etc/pki/tls/certs": true,
}

// hostRoots returns, as PEM, the certificates that the host trusts beyond the
// well-known ones; those that $SSL_CERT_FILE and $SSL_CERT_DIR name are among
// them.
func hostRoots(context.Context, *slog.Logger) []byte {
	places := append([]string(nil), rootPlaces...)
	for _, p := range append(filepath.SplitList(os.Getenv("SSL_CERT_DIR")), os.Getenv("SSL_CERT_FILE")) {
		if p != "" && !bundles[filepath.Clean(p)] {
			places = append(places, p)
		}
	}
	return certificates(places)
}
