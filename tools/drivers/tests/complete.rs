use std::collections::BTreeMap;
#[test]
fn count() {
    for class in polytape_drivers::classes() {
        let start = std::time::Instant::now();
        let steps = polytape_drivers::step_variants(&class.adapter, class.tier).unwrap();
        let t1 = start.elapsed();
        let all = polytape_drivers::all_variants(&class.adapter, class.tier).unwrap();
        let mut by: BTreeMap<&str, usize> = BTreeMap::new();
        for v in &all { *by.entry(v.kernel).or_default() += 1; }
        println!("{}: {} steps {t1:?}, {} all {:?}: {by:?}", class.name, steps.len(), all.len(), start.elapsed());
    }
}
