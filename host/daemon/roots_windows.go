package daemon

import (
	"bytes"
	"context"
	"encoding/pem"
	"log/slog"
	"unsafe"

	"golang.org/x/sys/windows"
)

// hostRoots returns, as PEM, the certificates of the system's ROOT store.
func hostRoots(_ context.Context, log *slog.Logger) []byte {
	name, err := windows.UTF16PtrFromString("ROOT")
	if err != nil {
		return nil
	}
	store, err := windows.CertOpenSystemStore(0, name)
	if err != nil {
		log.Warn("cannot read the host's root certificates", "error", err)
		return nil
	}
	defer windows.CertCloseStore(store, 0)
	var out bytes.Buffer
	var cert *windows.CertContext
	for out.Len() < maxRoots {
		// It frees the one before, and fails at the end.
		if cert, err = windows.CertEnumCertificatesInStore(store, cert); err != nil || cert == nil {
			break
		}
		der := unsafe.Slice(cert.EncodedCert, cert.Length)
		_ = pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: der}) // into memory
	}
	return out.Bytes()
}
