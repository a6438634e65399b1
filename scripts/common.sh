# shellcheck shell=bash
# What the scripts share: where the repository is, where tools are found, and how messages look.
# Sourced, never run. Sets the working directory to the repository's root.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
# cargo is in the user's home; ip, ethtool and tcpdump are in sbin, which a plain user's PATH lacks.
export PATH="$HOME/.cargo/bin:$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# say WORDS...: one line of progress.
say() { printf '%s: %s\n' "${0##*/}" "$*"; }

# warn WORDS...: something is less than wished for; goes on.
warn() { printf '%s: warning: %s\n' "${0##*/}" "$*" >&2; }

# die WORDS...: ends the script with status 1.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# usage: prints the comment block at the top of the calling script.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
