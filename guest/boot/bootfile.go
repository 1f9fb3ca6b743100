//go:build linux

package boot

import (
	"encoding/json"
	"fmt"
	"time"
)

// A bootFile is the part of proto/control's Boot that init itself needs (a test
// keeps the two in step). That package is not imported: it brings net and
// crypto, whose start costs PID 1 more than all it does itself under emulation.
type bootFile struct {
	Machine string      `json:"machine"`
	Time    time.Time   `json:"time"`
	Network *bootUplink `json:"network"`
	Debug   bool        `json:"debug"`
}

type bootUplink struct {
	MAC     string `json:"mac"`
	Address string `json:"address"`
	Gateway string `json:"gateway"`
	DNS     string `json:"dns"`
	MTU     int    `json:"mtu"`
}

func parseBootFile(raw []byte) (bootFile, error) {
	var b bootFile
	if err := json.Unmarshal(raw, &b); err != nil {
		return bootFile{}, fmt.Errorf("boot.json: %w", err)
	}
	return b, nil
}
