package evidence

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"math/bits"
)

// Hash is a SHA-256 hash. As text it is 64 hexadecimal digits.
type Hash [sha256.Size]byte

// String returns the hexadecimal digits.
func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText implements encoding.TextMarshaler.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (h *Hash) UnmarshalText(b []byte) error {
	if len(b) != 2*len(h) {
		return fmt.Errorf("read hash: %d characters, want %d hexadecimal digits", len(b), 2*len(h))
	}
	if _, err := hex.Decode(h[:], b); err != nil {
		return fmt.Errorf("read hash: %w", err)
	}
	return nil
}

// What is hashed begins with a byte that says what it is, so that nothing can
// be taken for something else. The first two are those of RFC 6962.
const (
	prefixLeaf       = 0x00
	prefixNode       = 0x01
	prefixGroup      = 0x02
	prefixBatch      = 0x03
	prefixCheckpoint = 0x04
	prefixNamespace  = 0x05
)

func hashOf(prefix byte, content []byte) Hash {
	s := sha256.New()
	s.Write([]byte{prefix})
	s.Write(content)
	var h Hash
	s.Sum(h[:0])
	return h
}

// LeafHash is the hash of a leaf with the given content, as in RFC 6962.
func LeafHash(content []byte) Hash { return hashOf(prefixLeaf, content) }

// Root is the root of the Merkle tree of leaves, as in RFC 6962: of none it is
// the hash of nothing.
func Root(leaves []Hash) Hash {
	switch n := len(leaves); n {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return leaves[0]
	default:
		left := 1 << (bits.Len(uint(n-1)) - 1) // the largest power of two below n
		return node(Root(leaves[:left]), Root(leaves[left:]))
	}
}

func node(left, right Hash) Hash {
	var content [1 + 2*sha256.Size]byte
	content[0] = prefixNode
	copy(content[1:], left[:])
	copy(content[1+sha256.Size:], right[:])
	return sha256.Sum256(content[:])
}

// groupRoot is what a batch says of a namespace: how many flows it has, how
// many of them were refused, and the root of their tree. Refused ones are first.
func groupRoot(leaves []Hash, denied int) Hash {
	root := Root(leaves)
	content := binary.BigEndian.AppendUint64(nil, uint64(len(leaves)))
	content = binary.BigEndian.AppendUint64(content, uint64(denied))
	return hashOf(prefixGroup, append(content, root[:]...))
}
