package vmimage

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"
)

// A Manifest is manifest.json: what the image is and how to boot it.
type Manifest struct {
	Version       string            `json:"version"`
	Arch          string            `json:"arch"` // amd64, arm64
	KernelVersion string            `json:"kernel_version"`
	Cmdline       string            `json:"cmdline"` // independent of the driver: no console=
	Files         map[string]File   `json:"files"`
	Packages      []ManifestPackage `json:"packages"`
}

// A File is one file of the image.
type File struct {
	SHA256 string `json:"sha256"` // hex
	Size   int64  `json:"size"`   // bytes
}

// A ManifestPackage is a Debian package that the image holds parts of.
type ManifestPackage struct {
	Name    string `json:"name"`
	Version string `json:"version"`
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func digestFile(name string) (File, error) {
	data, err := os.ReadFile(name)
	if err != nil {
		return File{}, err
	}
	return File{SHA256: digest(data), Size: int64(len(data))}, nil
}

// marshal is JSON for files that people read, too.
func marshal(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	return append(b, '\n'), err
}

// The parts of SPDX 2.3 (spdx.github.io/spdx-spec/v2.3) that we fill.
type spdx struct {
	Version       string             `json:"spdxVersion"`
	License       string             `json:"dataLicense"`
	ID            string             `json:"SPDXID"`
	Name          string             `json:"name"`
	Namespace     string             `json:"documentNamespace"`
	Creation      spdxCreation       `json:"creationInfo"`
	Packages      []spdxPackage      `json:"packages"`
	Files         []spdxFile         `json:"files"`
	Relationships []spdxRelationship `json:"relationships"`
}

type spdxCreation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Version       string         `json:"versionInfo"`
	Supplier      string         `json:"supplier,omitempty"`
	Location      string         `json:"downloadLocation"`
	FilesAnalyzed bool           `json:"filesAnalyzed"`
	SourceInfo    string         `json:"sourceInfo,omitempty"`
	Concluded     string         `json:"licenseConcluded"`
	Declared      string         `json:"licenseDeclared"`
	Copyright     string         `json:"copyrightText"`
	Checksums     []spdxChecksum `json:"checksums,omitempty"`
	Refs          []spdxRef      `json:"externalRefs,omitempty"`
}

type spdxChecksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type spdxRef struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type spdxFile struct {
	ID        string         `json:"SPDXID"`
	Name      string         `json:"fileName"`
	Checksums []spdxChecksum `json:"checksums"`
	Concluded string         `json:"licenseConcluded"`
	Copyright string         `json:"copyrightText"`
}

type spdxRelationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

const noAssertion = "NOASSERTION"

// sbom describes the image: itself as a package, the Debian packages it holds
// parts of, and its files.
func sbom(m Manifest, pkgs []Package) ([]byte, error) {
	id := func(s string) string {
		return strings.Map(func(r rune) rune {
			if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
				return r
			}
			return '-'
		}, s)
	}
	const image = "SPDXRef-Package-image"
	doc := spdx{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT",
		Name:     fmt.Sprintf("dhow-image-%s-%s", m.Arch, m.Version),
		Creation: spdxCreation{Created: epoch.Format("2006-01-02T15:04:05Z"), Creators: []string{"Tool: dhow-mkimage-" + m.Version}},
		Packages: []spdxPackage{{
			ID: image, Name: "dhow-image-" + m.Arch, Version: m.Version, Location: noAssertion,
			Concluded: noAssertion, Declared: noAssertion, Copyright: noAssertion,
		}},
		Relationships: []spdxRelationship{{"SPDXRef-DOCUMENT", "DESCRIBES", image}},
	}
	for _, p := range pkgs {
		ref := "SPDXRef-Package-deb-" + id(p.Name)
		doc.Packages = append(doc.Packages, spdxPackage{
			ID: ref, Name: p.Name, Version: p.Version, Supplier: "Organization: Debian", Location: noAssertion,
			SourceInfo: fmt.Sprintf("built from the source package %s %s", p.Source, p.SourceVersion),
			Concluded:  noAssertion, Declared: noAssertion, Copyright: noAssertion,
			Checksums: []spdxChecksum{{"SHA256", p.SHA256}},
			Refs: []spdxRef{{"PACKAGE-MANAGER", "purl", fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s&distro=%s",
				p.Name, strings.ReplaceAll(strings.ReplaceAll(p.Version, "+", "%2B"), ":", "%3A"), p.Architecture, Suite)}},
		})
		doc.Relationships = append(doc.Relationships, spdxRelationship{image, "CONTAINS", ref})
	}
	var all strings.Builder
	names := make([]string, 0, len(m.Files))
	for n := range m.Files {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		ref := "SPDXRef-File-" + id(n)
		doc.Files = append(doc.Files, spdxFile{
			ID: ref, Name: "./" + n, Checksums: []spdxChecksum{{"SHA256", m.Files[n].SHA256}}, Concluded: noAssertion, Copyright: noAssertion,
		})
		doc.Relationships = append(doc.Relationships, spdxRelationship{image, "CONTAINS", ref})
		all.WriteString(n + " " + m.Files[n].SHA256 + "\n")
	}
	// A name for this very content.
	doc.Namespace = "https://spdx.org/spdxdocs/" + doc.Name + "-" + digest([]byte(all.String()))[:32]
	return marshal(doc)
}

// loadManifest reads dir's manifest and checks that its files are there at
// their sizes.
func loadManifest(dir string) (Manifest, error) {
	var m Manifest
	data, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, err
	}
	for n, f := range m.Files {
		st, err := os.Stat(filepath.Join(dir, n))
		if err != nil {
			return m, err
		}
		if st.Size() != f.Size {
			return m, fmt.Errorf("%s: %d bytes, the manifest says %d", n, st.Size(), f.Size)
		}
	}
	return m, nil
}
