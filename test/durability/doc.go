// Package durability proves with real processes that nothing is lost after it was acknowledged, and nothing stored twice.
package durability
