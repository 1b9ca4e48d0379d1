// Package collector takes flows from agents, names what they could not, stores them and answers questions.
package collector
