package evidence

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"sync"
)

// What is signed begins with what it is.
const (
	signedCheckpoint = "flowaudit evidence checkpoint 1\n"
	signedTombstone  = "flowaudit evidence tombstone 1\n"
	signedManifest   = "flowaudit evidence manifest 1\n"
	signedNamespace  = "flowaudit evidence namespace 1\n"
)

// Key signs evidence. Its methods may be called from any goroutine.
type Key struct {
	private ed25519.PrivateKey

	mu   sync.Mutex
	tags map[string]Tag
}

// Tag stands for a namespace: whoever does not have its proof cannot tell
// which, and for one namespace there is only one.
type Tag struct {
	Hash  Hash
	Proof []byte // the signature that the hash is of
}

// maxTags bounds the memory of a cluster that has made many namespaces.
const maxTags = 100_000

// GenerateKey makes a key, and gives it and its public part as PEM.
func GenerateKey() (private, public []byte, err error) {
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("generate key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("write key: %w", err)
	}
	spki, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, nil, fmt.Errorf("write key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: spki}), nil
}

// ParseKey reads an ed25519 private key in PKCS #8, as PEM.
func ParseKey(text []byte) (*Key, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, errors.New("read evidence key: no PEM block PRIVATE KEY: make one with flowaudit evidence keygen")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read evidence key: %w", err)
	}
	private, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("read evidence key: it is a %T, want ed25519: make one with flowaudit evidence keygen", parsed)
	}
	return &Key{private: private, tags: make(map[string]Tag)}, nil
}

// ParsePublicKey reads an ed25519 public key as PEM.
func ParsePublicKey(text []byte) (ed25519.PublicKey, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, errors.New("read public key: no PEM block PUBLIC KEY: flowaudit evidence keygen writes one beside the private key")
	}
	parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read public key: %w", err)
	}
	public, ok := parsed.(ed25519.PublicKey)
	if !ok {
		return nil, fmt.Errorf("read public key: it is a %T, want ed25519", parsed)
	}
	return public, nil
}

// Public is the key that verifies.
func (k *Key) Public() ed25519.PublicKey { return k.private.Public().(ed25519.PublicKey) }

// Fingerprint is the SHA-256 hash of a public key.
func Fingerprint(public ed25519.PublicKey) Hash { return sha256.Sum256(public) }

func (k *Key) sign(what string, content []byte) []byte {
	return ed25519.Sign(k.private, append([]byte(what), content...))
}

func signed(public ed25519.PublicKey, what string, content, signature []byte) bool {
	return ed25519.Verify(public, append([]byte(what), content...), signature)
}

// Tag is the tag of a namespace.
func (k *Key) Tag(namespace string) Tag {
	k.mu.Lock()
	defer k.mu.Unlock()
	t, ok := k.tags[namespace]
	if !ok {
		if len(k.tags) >= maxTags {
			clear(k.tags)
		}
		proof := k.sign(signedNamespace, []byte(namespace))
		t = Tag{hashOf(prefixNamespace, proof), proof}
		k.tags[namespace] = t
	}
	return t
}
