package main

import (
	"crypto/sha256"
	"debug/buildinfo"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// The parts of a document of SPDX 2.3 that are used here.
type (
	spdxDocument struct {
		Version       string             `json:"spdxVersion"`
		License       string             `json:"dataLicense"`
		ID            string             `json:"SPDXID"`
		Name          string             `json:"name"`
		Namespace     string             `json:"documentNamespace"`
		Creation      spdxCreation       `json:"creationInfo"`
		Packages      []spdxPackage      `json:"packages"`
		Relationships []spdxRelationship `json:"relationships"`
	}
	spdxCreation struct {
		Created  string   `json:"created"`
		Creators []string `json:"creators"`
	}
	spdxPackage struct {
		ID        string          `json:"SPDXID"`
		Name      string          `json:"name"`
		Version   string          `json:"versionInfo"`
		Location  string          `json:"downloadLocation"`
		Analyzed  bool            `json:"filesAnalyzed"`
		Checksums []spdxChecksum  `json:"checksums,omitempty"`
		Refs      []spdxReference `json:"externalRefs,omitempty"`
	}
	spdxChecksum struct {
		Algorithm string `json:"algorithm"`
		Value     string `json:"checksumValue"`
	}
	spdxReference struct {
		Category string `json:"referenceCategory"`
		Type     string `json:"referenceType"`
		Locator  string `json:"referenceLocator"`
	}
	spdxRelationship struct {
		From string `json:"spdxElementId"`
		Type string `json:"relationshipType"`
		To   string `json:"relatedSpdxElement"`
	}
)

// billOf says what an image is made of: the modules that its programs were
// built from, as they themselves say, and Debian's packages.
func billOf(name, version string, p platform) ([]byte, error) {
	d := spdxDocument{
		Version: "SPDX-2.3", License: "CC0-1.0", ID: "SPDXRef-DOCUMENT", Name: name,
		Creation: spdxCreation{Created: never().Format(time.RFC3339), Creators: []string{"Tool: flowaudit-release"}},
	}
	add := func(within, relation string, x spdxPackage) {
		x.Location = "NOASSERTION"
		if !slices.ContainsFunc(d.Packages, func(o spdxPackage) bool { return o.ID == x.ID }) {
			d.Packages = append(d.Packages, x)
		}
		d.Relationships = append(d.Relationships, spdxRelationship{within, relation, x.ID})
	}
	const whole = "SPDXRef-image"
	add(d.ID, "DESCRIBES", spdxPackage{ID: whole, Name: name, Version: version})
	programs := slices.Sorted(slices.Values(p.programs))
	for _, path := range programs {
		info, err := buildinfo.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read what %s was built from: %w", path, err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(b)
		program := spdxPackage{
			ID: spdxID("program", filepath.Base(path)), Name: filepath.Base(path), Version: version,
			Checksums: []spdxChecksum{{"SHA256", hex.EncodeToString(sum[:])}},
		}
		add(whole, "CONTAINS", program)
		add(program.ID, "DEPENDS_ON", goModule("stdlib", strings.TrimPrefix(info.GoVersion, "go")))
		for _, m := range info.Deps {
			add(program.ID, "DEPENDS_ON", moduleOf(m))
		}
	}
	for _, x := range p.packages {
		add(whole, "CONTAINS", spdxPackage{
			ID: spdxID("deb", x.name), Name: x.name, Version: x.version,
			Refs: []spdxReference{{"PACKAGE-MANAGER", "purl", fmt.Sprintf("pkg:deb/debian/%s@%s?arch=%s", x.name, x.version, x.arch)}},
		})
	}
	content, err := json.Marshal(d)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(content) // makes the document's name its own
	d.Namespace = fmt.Sprintf("https://github.com/flowaudit/flowaudit/spdx/%s-%x", name, sum[:16])
	out, err := json.MarshalIndent(d, "", " ")
	return append(out, '\n'), err
}

func moduleOf(m *debug.Module) spdxPackage {
	if m.Replace != nil {
		m = m.Replace
	}
	return goModule(m.Path, m.Version)
}

func goModule(path, version string) spdxPackage {
	return spdxPackage{
		ID: spdxID("go", path+"-"+version), Name: path, Version: version,
		Refs: []spdxReference{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + path + "@" + version}},
	}
}

// spdxID makes an identifier of letters, digits, dots and dashes.
func spdxID(kind, name string) string {
	return "SPDXRef-" + kind + "-" + strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '-' {
			return c
		}
		return '-'
	}, name)
}
