//! Hosts by what they have free.
//!
//! Hosts of one zone and family form a *cell*. In a cell, those with the same
//! devices free share a *sheet*: a table of free CPU (rows) by class of free memory
//! (columns), each field of it a ring of hosts. A word a row says which fields have
//! hosts, and a word for every sixteen rows says the same of them together, so a
//! search reads a few words, however many hosts there are.

use crate::levels::{CLASSES, Level, Levels, STEP_SCORE};
use crate::policy::Policy;
use crate::slab::{NONE, number};

/// Rows whose words are also kept together.
const GROUP: usize = 16;
/// Rows with a host that fits that are looked at for a better one.
const ROWS_TRIED: u32 = 6;
/// No class: the host is in no ring.
const OUT: u8 = u8::MAX;

/// A host that was found. The lower the score the better it suits the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) score: u64,
    pub(crate) host: u32,
}

/// Which of the hosts that fit is taken.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Search {
    /// What it must reach.
    pub(crate) need: Level,
    pub(crate) policy: Policy,
    /// How many hosts of one ring may be refused before the next is tried.
    pub(crate) probes: u32,
}

/// A host's place in its ring.
#[derive(Debug, Clone, Copy)]
struct Link {
    previous: u32,
    next: u32,
    cell: u32,
    row: u16,
    sheet: u16,
    class: u8,
}

const UNLINKED: Link = Link {
    previous: NONE,
    next: NONE,
    cell: NONE,
    row: 0,
    sheet: 0,
    class: OUT,
};

#[derive(Debug)]
struct Sheet {
    level: Level,
    hosts: u32,
    /// Classes that have hosts, by row.
    words: Vec<u64>,
    /// The same of [`GROUP`] rows together.
    groups: Vec<u64>,
    /// Each row's rings in `rings`, [`NONE`] where it has none.
    rows: Vec<u32>,
    rings: Vec<[u32; CLASSES]>,
    free_rings: Vec<u32>,
}

#[derive(Debug, Default)]
struct Cell {
    sheets: Vec<Sheet>,
}

/// The index over all cells.
#[derive(Debug, Default)]
pub(crate) struct RoomIndex {
    cells: Vec<Cell>,
    links: Vec<Link>,
}

impl RoomIndex {
    /// Puts a host where its free room stands now; `None` takes it out.
    pub(crate) fn set(&mut self, host: u32, cell: u32, level: Option<Level>) {
        if self.links.len() <= host as usize {
            self.links.resize(host as usize + 1, UNLINKED);
        }
        let at = self.links[host as usize];
        match level {
            Some(level) if at.class == level.class && at.row == level.row && at.cell == cell => {
                let sheet = &self.cells[cell as usize].sheets[usize::from(at.sheet)];
                if sheet.level.devices == level.devices {
                    return;
                }
            }
            None if at.class == OUT => return,
            _ => {}
        }
        self.unlink(host);
        if let Some(level) = level {
            self.link(host, cell, level);
        }
    }

    /// Whether the host can be found, and where it stands.
    pub(crate) fn level(&self, host: u32) -> Option<(u32, Level)> {
        let at = self.links.get(host as usize)?;
        if at.class == OUT {
            return None;
        }
        let sheet = &self.cells[at.cell as usize].sheets[usize::from(at.sheet)];
        let level = Level {
            row: at.row,
            class: at.class,
            devices: sheet.level.devices,
        };
        Some((at.cell, level))
    }

    /// The host of that cell that suits the policy best among those that fit and are
    /// accepted; `best` where none is better.
    pub(crate) fn find(
        &self,
        cell: u32,
        search: Search,
        levels: &Levels,
        mut best: Option<Found>,
        mut accept: impl FnMut(u32) -> bool,
    ) -> Option<Found> {
        let Some(cell) = self.cells.get(cell as usize) else {
            return best;
        };
        let need = search.need.devices;
        let fitting = |sheet: &&Sheet| sheet.hosts > 0 && need.fit(sheet.level.devices);
        for sheet in cell.sheets.iter().filter(fitting) {
            best = match search.policy {
                Policy::Pack => self.tightest(sheet, search, levels, best, &mut accept),
                Policy::Spread => self.emptiest(sheet, search, levels, best, &mut accept),
            };
        }
        best
    }

    /// Rows upwards from the least that fits: CPU left over grows with each.
    fn tightest(
        &self,
        sheet: &Sheet,
        search: Search,
        levels: &Levels,
        mut best: Option<Found>,
        accept: &mut impl FnMut(u32) -> bool,
    ) -> Option<Found> {
        let need = search.need;
        let wanted = u64::MAX << need.class;
        let mut from = usize::from(need.row);
        let mut tried = 0;
        while let Some(row) = sheet.row_from(from, wanted) {
            let cpu_left = number(row - usize::from(need.row));
            let row_score = u64::from(cpu_left) * STEP_SCORE;
            let enough = best.is_some_and(|best| best.score <= row_score);
            if enough || (best.is_some() && tried == ROWS_TRIED) {
                break;
            }
            let mut classes = sheet.words[row] & wanted;
            while classes != 0 {
                let class = classes.trailing_zeros();
                let memory_left = levels.score(low_byte(class)) - levels.score(need.class);
                let score = row_score + memory_left;
                if best.is_some_and(|best| best.score <= score) {
                    break;
                }
                if let Some(host) = self.pick(sheet.head(row, class), search.probes, accept) {
                    best = Some(Found { score, host });
                    break;
                }
                classes &= classes - 1;
            }
            tried += 1;
            from = row + 1;
        }
        best
    }

    /// Rows downwards from the most that any has.
    fn emptiest(
        &self,
        sheet: &Sheet,
        search: Search,
        levels: &Levels,
        mut best: Option<Found>,
        accept: &mut impl FnMut(u32) -> bool,
    ) -> Option<Found> {
        let need = search.need;
        let wanted = u64::MAX << need.class;
        let mut below = sheet.words.len();
        let mut tried = 0;
        while let Some(row) = sheet.row_below(below, wanted) {
            if row < usize::from(need.row) || (best.is_some() && tried == ROWS_TRIED) {
                break;
            }
            let row_score = u64::from(number(row)) * STEP_SCORE;
            let mut classes = sheet.words[row] & wanted;
            while classes != 0 {
                let class = 63 - classes.leading_zeros();
                let room = row_score + levels.score(low_byte(class));
                let score = u64::MAX - room;
                if best.is_some_and(|best| best.score <= score) {
                    break;
                }
                if let Some(host) = self.pick(sheet.head(row, class), search.probes, accept) {
                    best = Some(Found { score, host });
                    break;
                }
                classes &= !(1 << class);
            }
            tried += 1;
            below = row;
        }
        best
    }

    /// The first accepted host of a ring.
    fn pick(&self, head: u32, probes: u32, accept: &mut impl FnMut(u32) -> bool) -> Option<u32> {
        let mut host = head;
        for _ in 0..probes {
            if accept(host) {
                return Some(host);
            }
            host = self.links[host as usize].next;
            if host == head {
                break;
            }
        }
        None
    }

    fn unlink(&mut self, host: u32) {
        let at = std::mem::replace(&mut self.links[host as usize], UNLINKED);
        if at.class == OUT {
            return;
        }
        let sheet = &mut self.cells[at.cell as usize].sheets[usize::from(at.sheet)];
        sheet.hosts -= 1;
        if at.next == host {
            sheet.clear(usize::from(at.row), at.class);
            return;
        }
        self.links[at.previous as usize].next = at.next;
        self.links[at.next as usize].previous = at.previous;
        let head = sheet.head_mut(usize::from(at.row), at.class);
        if *head == host {
            *head = at.next;
        }
    }

    /// Last in its ring: who has just got a pod comes last, so that pods which must
    /// not meet do not all stumble over the same hosts.
    fn link(&mut self, host: u32, cell: u32, level: Level) {
        if self.cells.len() <= cell as usize {
            self.cells.resize_with(cell as usize + 1, Cell::default);
        }
        let sheets = &mut self.cells[cell as usize].sheets;
        let known = sheets
            .iter()
            .position(|sheet| sheet.level.devices == level.devices);
        let position = known.unwrap_or_else(|| {
            // An empty one may serve other devices now.
            let empty = sheets.iter().position(|sheet| sheet.hosts == 0);
            if let Some(position) = empty {
                sheets[position].level = level;
                return position;
            }
            sheets.push(Sheet::new(level));
            sheets.len() - 1
        });
        let sheet = &mut sheets[position];
        sheet.hosts += 1;
        let head = sheet.open(usize::from(level.row), level.class);
        let mut at = Link {
            previous: host,
            next: host,
            cell,
            row: level.row,
            sheet: u16::try_from(position).unwrap_or(u16::MAX),
            class: level.class,
        };
        if *head == NONE {
            *head = host;
        } else {
            let first = *head;
            let last = self.links[first as usize].previous;
            at.previous = last;
            at.next = first;
            self.links[last as usize].next = host;
            self.links[first as usize].previous = host;
        }
        self.links[host as usize] = at;
    }
}

impl Sheet {
    fn new(level: Level) -> Self {
        Self {
            level,
            hosts: 0,
            words: Vec::new(),
            groups: Vec::new(),
            rows: Vec::new(),
            rings: Vec::new(),
            free_rings: Vec::new(),
        }
    }

    /// The first row from `from` on that has one of the wanted classes.
    fn row_from(&self, from: usize, wanted: u64) -> Option<usize> {
        let end = self.words.len();
        let mut row = from;
        while row < end {
            if row.is_multiple_of(GROUP) && self.groups[row / GROUP] & wanted == 0 {
                row += GROUP;
                continue;
            }
            if self.words[row] & wanted != 0 {
                return Some(row);
            }
            row += 1;
        }
        None
    }

    /// The last row before `below` that has one of the wanted classes.
    fn row_below(&self, below: usize, wanted: u64) -> Option<usize> {
        let mut below = below;
        while below > 0 {
            if below.is_multiple_of(GROUP) && self.groups[below / GROUP - 1] & wanted == 0 {
                below -= GROUP;
                continue;
            }
            below -= 1;
            if self.words[below] & wanted != 0 {
                return Some(below);
            }
        }
        None
    }

    fn head(&self, row: usize, class: u32) -> u32 {
        self.rings[self.rows[row] as usize][class as usize]
    }

    fn head_mut(&mut self, row: usize, class: u8) -> &mut u32 {
        &mut self.rings[self.rows[row] as usize][usize::from(class)]
    }

    /// The ring's head, the ring made where there was none.
    fn open(&mut self, row: usize, class: u8) -> &mut u32 {
        if self.words.len() <= row {
            self.words.resize(row + 1, 0);
            self.rows.resize(row + 1, NONE);
            self.groups.resize((row + 1).div_ceil(GROUP), 0);
        }
        self.words[row] |= 1 << class;
        self.groups[row / GROUP] |= 1 << class;
        if self.rows[row] == NONE {
            self.rows[row] = self.free_rings.pop().unwrap_or_else(|| {
                self.rings.push([NONE; CLASSES]);
                number(self.rings.len() - 1)
            });
        }
        self.head_mut(row, class)
    }

    /// A ring has lost its last host.
    fn clear(&mut self, row: usize, class: u8) {
        *self.head_mut(row, class) = NONE;
        self.words[row] &= !(1 << class);
        if self.words[row] == 0 {
            self.free_rings.push(self.rows[row]);
            self.rows[row] = NONE;
        }
        let group = row / GROUP;
        let rows = self.words.iter().skip(group * GROUP).take(GROUP);
        self.groups[group] = rows.fold(0, |all, word| all | word);
    }
}

/// A class is less than 64.
fn low_byte(class: u32) -> u8 {
    u8::try_from(class).unwrap_or(u8::MAX)
}
