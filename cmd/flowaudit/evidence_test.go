package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	proofs "github.com/flowaudit/flowaudit/evidence"
	"github.com/flowaudit/flowaudit/flow"
)

func TestEvidenceIsVerifiedOffline(t *testing.T) {
	dir := t.TempDir()
	keyFile, bundle := filepath.Join(dir, "key"), filepath.Join(dir, "bundle.zip")
	if a := invoke("", "evidence", "keygen", keyFile); a.code != exitOK || !strings.Contains(a.stdout, "key.pub") {
		t.Fatalf("%+v", a)
	}
	if a := invoke("", "evidence", "keygen", keyFile); a.code == exitOK {
		t.Error("a key was overwritten")
	}
	text, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(keyFile); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the key has mode %v", info.Mode())
	}
	key, err := proofs.ParseKey(text)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(bundle)
	if err != nil {
		t.Fatal(err)
	}
	w := key.NewWriter(f, proofs.Scope{Everyone: true, Until: time.Unix(1_700_000_000, 0)})
	for _, err := range []error{
		w.Sections(func(func(*proofs.Section) error) error { return nil }), w.Tombstones(nil), w.Objects(func(func(*flow.Change) error) error { return nil }), w.Flows(func(func([]byte) error) error { return nil }),
		w.Close(time.Unix(1_700_000_001, 0)), f.Close(),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	a := invoke("", "evidence", "verify", bundle, "--key", keyFile+".pub")
	if a.code != exitOK || !strings.Contains(a.stdout, "of all namespaces, stored from the first that was kept to 2023-11-14T22:13:20Z") {
		t.Errorf("%+v", a)
	}
	whole, err := os.ReadFile(bundle)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(bundle, whole[:len(whole)-10], 0o600); err != nil {
		t.Fatal(err)
	}
	if a := invoke("", "evidence", "verify", bundle, "--key", keyFile+".pub"); a.code != exitError || !strings.Contains(a.stderr, "it is no bundle, or was cut") {
		t.Errorf("%+v", a)
	}
	if a := invoke("", "evidence", "verify", bundle); a.code != exitUsage || !strings.Contains(a.stderr, "--key") {
		t.Errorf("%+v", a)
	}
}
